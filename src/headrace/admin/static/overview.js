"use strict";
// One request a second for everything; nothing is asked while the page is hidden. Text is only ever set as text, never as markup.
const $ = (id) => document.getElementById(id);
const make = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; };
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en");
const rate = (v) => v >= 10000 ? short.format(v) : whole.format(v >= 10 ? Math.round(v) : Math.round(v * 10) / 10);
const bytes = (v) => { let i = 0; while (v >= 1024 && i < 5) { v /= 1024; i++; } return (i && v < 100 ? v.toFixed(1) : Math.round(v)) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i]; };
const span = (ms) => ms < 1000 ? ms + " ms" : ms < 60e3 ? Math.round(ms / 1e3) + " s" : ms < 3600e3 ? Math.round(ms / 60e3) + " min" : ms < 172800e3 ? Math.round(ms / 3600e3) + " h" : Math.round(ms / 86400e3) + " d";
let last = null;

function spark(svg, values) {
  const points = values.slice(-120), top = Math.max(1, ...points) * 1.08, step = 120 / Math.max(1, points.length - 1);
  const line = points.map((v, i) => `${i ? "L" : "M"}${(i * step).toFixed(1)} ${(31 - 30 * v / top).toFixed(1)}`).join("");
  for (const [cls, d] of [["area", line && line + "L120 32L0 32Z"], ["line", line]]) {
    let path = svg.querySelector("." + cls);
    if (!path) { path = document.createElementNS("http://www.w3.org/2000/svg", "path"); path.setAttribute("class", cls); svg.append(path); }
    path.setAttribute("d", d);
  }
}

function row(item, cells) {
  const tr = make("tr"), name = make("th", item.name);
  name.scope = "row"; name.title = item.name;
  if (item.paused) name.append(make("span", "paused", "note"));
  if (item.attention.length) name.append(make("span", item.attention.join("; "), "note"));
  tr.append(name, ...cells.map((text) => make("td", text, /^0( B)?$/.test(text) ? "n zero" : "n")));
  return tr;
}

function fill(id, items, cells, none) {
  const wanted = $("find").value.trim().toLowerCase(), body = $(id).tBodies[0];
  const shown = items.filter((i) => i.name.toLowerCase().includes(wanted));
  if (shown.length) { body.replaceChildren(...shown.map((i) => row(i, cells(i)))); return; }
  const tr = make("tr", undefined, "empty"), td = make("td", items.length ? "No name holds that." : none);
  td.colSpan = $(id).tHead.rows[0].cells.length; tr.append(td); body.replaceChildren(tr);
}

function draw(now) {
  const s = now.status;
  $("state").textContent = s.state; $("state").className = "pill " + s.state;
  $("about").textContent = `${s.broker}, ${s.release}, ${s.mode}, ${s.storage}, up ${span(s.uptime_ms)}`;
  document.title = `${s.attention.length ? "(!) " : ""}Headrace: ${s.broker}`;
  const attention = [...s.attention, ...[...now.queues, ...now.streams].flatMap((i) => i.attention.map((a) => `${i.name}: ${a}`))];
  $("attention").hidden = !attention.length;
  const list = $("attention").querySelector("ul"), text = attention.join("\n");
  if (list.dataset.text !== text) { list.dataset.text = text; list.replaceChildren(...attention.slice(0, 50).map((a) => make("li", a))); }
  for (const tile of document.querySelectorAll(".tile")) {
    const values = now.history[tile.dataset.rate] || [], value = values.length ? values[values.length - 1] : 0;
    tile.querySelector("strong").textContent = "bytes" in tile.dataset ? bytes(value) : rate(value);
    spark(tile.querySelector("svg"), values);
  }
  const facts = [["Connections", whole.format(s.connections)], ["Queues", whole.format(s.queues)], ["Streams", whole.format(s.streams)], ["In memory", whole.format(s.loaded_partitions) + " partitions"],
    ["Memory", bytes(s.memory_bytes)]];
  if (s.storage !== "memory") facts.push(["Log", bytes(s.wal_bytes)], ["Free disk", bytes(s.disk_free_bytes)], ["Sync p50 / p99", `${(s.flush_p50_us / 1e3).toFixed(2)} / ${(s.flush_p99_us / 1e3).toFixed(2)} ms`]);
  $("facts").replaceChildren(...facts.map(([k, v]) => { const d = make("div"); d.append(make("dt", k), make("dd", v)); return d; }));
  fill("queues", now.queues, (q) => [whole.format(q.ready), whole.format(q.leased), whole.format(q.delayed), rate(q.publish_rate), rate(q.deliver_rate), rate(q.settle_rate), whole.format(q.consumers), q.oldest_ms ? span(q.oldest_ms) : "0"],
    "No queue yet. Declare one: headrace queue declare NAME");
  fill("streams", now.streams, (i) => [whole.format(i.records), bytes(i.bytes), whole.format(i.partition_count), rate(i.publish_rate), rate(i.deliver_rate), whole.format(i.consumers)],
    "No stream yet. Declare one: headrace stream declare NAME");
  $("queues-title").textContent = "Queues" + (now.more.queues ? " (the first in order and the busiest)" : "");
  $("streams-title").textContent = "Streams" + (now.more.streams ? " (the first in order and the busiest)" : "");
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/admin/api/overview", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error((await answer.json()).message);
      last = await answer.json();
      draw(last);
    } catch (e) {
      $("state").textContent = "no answer"; $("state").className = "pill away"; $("about").textContent = "trying again every second";
    }
  }
  setTimeout(poll, 1000);
}
$("find").addEventListener("input", () => last && draw(last));
poll();
