// MQTT.js: `node with_mqttjs.mjs MODULE URL OTHER VERSION ROOT`; of two clients the second one connects to OTHER. Ends with 0 if all came as it should.
import assert from "node:assert";

const [module, url, other, version, root] = process.argv.slice(2);
const mqtt = (await import(module)).default;
const large = Buffer.alloc(500_000, "headrace");
setTimeout(() => { console.error("not done in time"); process.exit(1); }, 40_000);

async function client(name, url, more = {}) {
  const made = await mqtt.connectAsync(url, { clientId: `${root}-${name}`, protocolVersion: Number(version), reconnectPeriod: 0, ...more });
  made.got = [];
  made.on("message", (topic, payload, packet) => made.got.push([topic, payload, packet.qos, packet.retain]));
  made.expect = async (...wanted) => {
    while (made.got.length < wanted.length) await new Promise((done) => made.once("message", done));
    const order = (a, b) => (a[0] < b[0] ? -1 : 1);
    assert.deepStrictEqual(made.got.splice(0, wanted.length).sort(order), wanted.sort(order));
  };
  return made;
}

const one = await client("one", url);
const two = await client("two", other, { will: { topic: `${root}/will`, payload: Buffer.from("gone"), qos: 1, retain: false } });
await one.publishAsync(`${root}/kept`, "retained", { qos: 1, retain: true });
await one.subscribeAsync(`${root}/t/#`, { qos: 2 });
for (const qos of [0, 1, 2]) await two.publishAsync(`${root}/t/${qos}`, `${qos}`, { qos });
await two.publishAsync(`${root}/t/large`, large, { qos: 1 });
await one.expect(...[0, 1, 2].map((qos) => [`${root}/t/${qos}`, Buffer.from(`${qos}`), qos, false]), [`${root}/t/large`, large, 1, false]);
await one.subscribeAsync(`${root}/kept`, { qos: 1 });
await one.expect([`${root}/kept`, Buffer.from("retained"), 1, true]);
await one.subscribeAsync(`$share/g/${root}/s`, { qos: 1 });
await two.publishAsync(`${root}/s`, "shared", { qos: 1 });
await one.expect([`${root}/s`, Buffer.from("shared"), 1, false]);
await one.subscribeAsync(`${root}/will`, { qos: 1 });
two.stream.destroy(); // a client that dies
await one.expect([`${root}/will`, Buffer.from("gone"), 1, false]);
await one.endAsync();
console.log("ok");
process.exit(0);
