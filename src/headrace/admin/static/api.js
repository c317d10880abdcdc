"use strict";
const make = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; };
fetch("/admin/api/openapi.json").then((answer) => answer.json()).then((api) => {
  const groups = new Map();
  for (const [path, verbs] of Object.entries(api.paths)) for (const [verb, route] of Object.entries(verbs)) {
    const group = (route.tags || ["other"])[0];
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([verb.toUpperCase() + " " + path, route]);
  }
  for (const [group, routes] of groups) {
    const section = make("section"), scroll = make("div", undefined, "scroll"), table = make("table", undefined, "api"), body = make("tbody");
    for (const [name, route] of routes) {
      const tr = make("tr"), about = make("td", route.summary || ""), query = (route.parameters || []).filter((p) => p.in === "query").map((p) => p.name);
      const schema = route.requestBody && route.requestBody.content["application/json"].schema, fields = schema ? Object.keys(schema.properties || {}) : [];
      if (query.length) about.append(make("br"), "query: ", make("code", query.join(", ")));
      if (fields.length) about.append(make("br"), "body: ", make("code", fields.join(", ")));
      tr.append(make("td", name), about); body.append(tr);
    }
    table.append(body); scroll.append(table); section.append(make("h2", group), scroll); document.getElementById("routes").append(section);
  }
});
