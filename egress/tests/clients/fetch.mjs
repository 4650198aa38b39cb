// Node's own fetch, which takes the proxy from the environment when NODE_USE_ENV_PROXY is set.
const url = process.argv[2];
const allowed = await fetch(`${url}/v1/echo`, { method: "POST", body: "from node" });
console.log(allowed.status, await allowed.text());
const refused = await fetch(`${url}/secret`);
console.log(refused.status, (await refused.json()).error.code);
const events = await fetch(`${url}/v1/messages`, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ stream: true }),
});
let text = "";
for await (const chunk of events.body) text += Buffer.from(chunk).toString();
console.log(events.headers.get("content-type"), text.split("\n\n").length - 1);
