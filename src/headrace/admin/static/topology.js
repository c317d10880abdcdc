"use strict";
// One request a second for the whole cluster, asked of the broker that this page is from; nothing is asked while the page is hidden. Text is only ever
// set as text, never as markup. Chips keep their elements while they stay the same, so that an owner's change is seen as a movement.
const $ = (id) => document.getElementById(id);
const make = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; };
const whole = new Intl.NumberFormat("en");
const span = (ms) => ms < 1000 ? ms + " ms" : ms < 60e3 ? Math.round(ms / 1e3) + " s" : ms < 3600e3 ? Math.round(ms / 60e3) + " min" : ms < 172800e3 ? Math.round(ms / 3600e3) + " h" : Math.round(ms / 86400e3) + " d";
const still = matchMedia("(prefers-reduced-motion: reduce)");
const CHIPS = 200, ROWS = 1000, MOVE_MS = 700, CHANGED_MS = 4000;
let last = null, names = new Map();
const chips = new Map(), epochs = new Map();

const named = (id) => names.get(id) || id;
const label = (p) => `${p.name}/${p.partition}`;
const lagOf = (p) => (p.followers || []).reduce((most, f) => (f.lag ?? -1) < 0 ? most : Math.max(most, f.lag), -1);

function chip(key, text, cls, title) {
  let found = chips.get(key);
  if (!found) { found = make("span"); chips.set(key, found); }
  if (found.textContent !== text) found.textContent = text;
  found.className = "chip " + cls; found.title = title;
  return found;
}

function card(b, owned, copies) {
  const box = make("article", undefined, "broker " + b.state), head = make("h3", b.name);
  if (b.controller) head.append(make("span", "controller", "badge"));
  head.append(make("span", b.voter ? "voter" : "observer", "badge"));
  if (b.draining) head.append(make("span", "draining", "badge"));
  if (last.broker && b.id === last.broker) head.append(make("span", "this one", "badge"));
  head.append(make("span", b.state, "pill " + b.state));
  box.append(head);
  if (b.why) box.append(make("p", b.why, "why"));
  const facts = make("dl"), fact = (k, v) => { if (v) { const d = make("dd"); d.append(v); if (typeof v === "string") d.title = v; facts.append(make("dt", k), d); } };
  const at = b.addresses || {};
  fact("clients", at.native);
  if (at.admin) { const a = make("a", at.admin); a.href = `http://${at.admin}/admin/topology`; fact("admin", a); }
  fact("peers", at.peer);
  fact("rack", [b.rack, b.host].filter(Boolean).join(", "));
  fact("life", b.incarnation ? `${b.incarnation}${b.for_ms ? ", " + (b.registered ? "" : "gone ") + "for " + span(b.for_ms) : ""}` : "");
  fact("serves", `${whole.format(b.owns || 0)} of ${whole.format(b.copies || 0)} copies`);
  box.append(facts);
  for (const list of [owned, copies]) {
    if (!list.length && list === copies) continue;
    const row = make("div", undefined, "chips");
    row.append(...list.slice(0, CHIPS));
    if (list.length > CHIPS) row.append(make("span", `and ${whole.format(list.length - CHIPS)} more`, "legend"));
    box.append(row);
  }
  return box;
}

function drawBrokers(now) {
  const before = new Map([...chips].map(([key, e]) => [key, e.isConnected ? e.getBoundingClientRect() : null]));
  const owned = new Map(), copies = new Map(), seen = new Set();
  const put = (lists, id, e) => { if (!lists.has(id)) lists.set(id, []); lists.get(id).push(e); };
  for (const p of now.partitions) {
    const title = `${label(p)}, ${p.state}, epoch ${p.epoch || 0}${p.why ? ": " + p.why : ""}`;
    seen.add("o" + p.id);
    put(owned, p.owner || "", chip("o" + p.id, label(p), p.state, title));
    for (const f of p.followers || []) {
      const key = "c" + p.id + "@" + f.broker, lag = f.lag ?? -1;
      seen.add(key);
      put(copies, f.broker, chip(key, lag > 0 ? `${label(p)} −${whole.format(lag)}` : label(p), f.in_sync ? "copy" : "copy behind", `${label(p)}: ${f.link}, lag ${lag < 0 ? "not known" : lag}${f.why ? ", " + f.why : ""}`));
    }
  }
  for (const key of [...chips.keys()]) if (!seen.has(key)) chips.delete(key);
  const cards = now.brokers.map((b) => card(b, owned.get(b.id) || [], copies.get(b.id) || []));
  const nobodys = owned.get("") || [];
  if (nobodys.length) { const box = make("article", undefined, "broker dead"), row = make("div", undefined, "chips"); row.append(...nobodys.slice(0, CHIPS)); box.append(make("h3", "Nobody's"), row); cards.push(box); }
  $("brokers").replaceChildren(...cards);
  if (still.matches) return;
  for (const [key, e] of chips) {
    const was = before.get(key);
    if (!was || !e.isConnected) continue;
    const is = e.getBoundingClientRect(), x = was.left - is.left, y = was.top - is.top;
    if (Math.abs(x) + Math.abs(y) > 4) e.animate([{ transform: `translate(${x}px, ${y}px)`, zIndex: 2 }, { transform: "none" }], { duration: MOVE_MS, easing: "ease-in-out" });
  }
}

function row(p, now_ms) {
  const tr = make("tr"), name = make("th", label(p)), state = make("td", p.state.replace("_", " "), "state " + p.state), owner = make("td", p.owner ? named(p.owner) : "nobody");
  name.scope = "row"; name.title = `${p.kind}, partition ${p.id}, ${p.level || ""}${p.floor ? ", at least " + p.floor + " in sync" : ""}`;
  if (p.kind === "stream") name.append(make("span", "stream", "badge"));
  if (p.preferred && p.preferred !== p.owner) { owner.append(make("span", `prefers ${named(p.preferred)}`, "note")); }
  owner.title = p.reason || "";
  const was = epochs.get(p.id), mark = `${p.owner}@${p.epoch}`;
  if (!was || was.mark !== mark) epochs.set(p.id, { mark, at: was ? now_ms : 0 });
  if (epochs.get(p.id).at > now_ms - CHANGED_MS) tr.className = "changed";
  const followers = make("td");
  (p.followers || []).forEach((f, i) => {
    const lag = f.lag ?? -1, learns = (p.learners || []).includes(f.broker) ? " (learns)" : "";
    followers.append(i ? ", " : "", make("span", `${named(f.broker)}${learns} ${lag < 0 ? "?" : whole.format(lag)}`, f.in_sync ? "" : "late"));
    followers.lastChild.title = f.why || f.link;
  });
  const sync = (p.isr || []).length ? `${p.isr.length} of ${p.replicas.length}${(p.elr || []).length ? ", elr " + p.elr.map(named).join(" ") : ""}` : "–";
  const lag = lagOf(p), hw = p.high_watermark ?? -1;
  tr.append(name, state, owner, followers, make("td", sync), make("td", whole.format(p.epoch || 0), "n"), make("td", hw < 0 ? "?" : whole.format(hw), "n"), make("td", lag < 0 ? "–" : whole.format(lag), lag > 0 ? "n late" : "n zero"));
  if (!p.why) return [tr];
  const why = make("tr", undefined, "why"), td = make("td", p.why + ((p.waits_for || []).length ? ` (waits for ${p.waits_for.map(named).join(", ")})` : ""));
  td.colSpan = 8; why.append(td);
  return [tr, why];
}

function drawPartitions(now) {
  const wanted = $("find").value.trim().toLowerCase(), body = $("partitions").tBodies[0], now_ms = performance.now();
  const text = (p) => [label(p), p.state, named(p.owner || ""), ...(p.followers || []).map((f) => named(f.broker))].join(" ").toLowerCase();
  const calm = (p) => p.state === "serving" || p.state === "idle" ? 1 : 0;
  const shown = now.partitions.filter((p) => text(p).includes(wanted)).sort((a, b) => calm(a) - calm(b));
  if (shown.length) { body.replaceChildren(...shown.slice(0, ROWS).flatMap((p) => row(p, now_ms))); }
  else {
    const tr = make("tr", undefined, "empty"), td = make("td", now.partitions.length ? "Nothing holds that." : "No queue or stream yet. Declare one: headrace queue declare NAME");
    td.colSpan = 8; tr.append(td); body.replaceChildren(tr);
  }
  $("partitions-title").textContent = "Partitions" + (now.more ? ` (the first ${whole.format(now.partitions.length)})` : "");
}

function draw(now) {
  names = new Map(now.brokers.map((b) => [b.id, b.name]));
  const alive = now.brokers.filter((b) => b.state === "alive").length;
  $("state").textContent = now.state; $("state").className = "pill " + now.state;
  $("about").textContent = `as ${named(now.broker)} sees it: ${alive} of ${now.brokers.length} brokers alive, controller ${now.controller ? named(now.controller) : "nobody"}`
    + (now.term ? `, term ${now.term}` : "") + (now.planning && now.planning !== "on" ? `, planning ${now.planning.replace("_", " ")}` : "");
  const attention = now.attention || [];
  document.title = `${attention.length ? "(!) " : ""}Headrace: topology`;
  $("attention").hidden = !attention.length;
  const list = $("attention").querySelector("ul"), text = attention.join("\n");
  if (list.dataset.text !== text) { list.dataset.text = text; list.replaceChildren(...attention.map((a) => make("li", a))); }
  drawBrokers(now);
  drawPartitions(now);
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/admin/api/topology", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error((await answer.json()).message);
      last = { partitions: [], ...await answer.json() };
      draw(last);
    } catch (e) {
      $("state").textContent = "no answer"; $("state").className = "pill away"; $("about").textContent = "trying again every second";
    }
  }
  setTimeout(poll, 1000);
}
$("find").addEventListener("input", () => last && drawPartitions(last));
poll();
