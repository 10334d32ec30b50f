// The page that lists the paths of openapi.json.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const { origin, host, protocol } = location;
document.getElementById("socket").textContent = `${protocol.replace("http", "ws")}//${host}/v1/stream`;
document.getElementById("shell").textContent = `curl ${origin}/v1/generate -H 'Content-Type: application/json' \\
  -d '{"segments": [{"text": "Once upon a time"}], "output_modality": "text", "temperature": 0.8}'`;
document.getElementById("python").textContent = `from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key="none")
model = client.models.list().data[0].id
print(client.completions.create(model=model, prompt="Once upon a time", max_tokens=50).choices[0].text)`;

const api = await (await fetch("/openapi.json")).json();

/** The schema that a reference leads to. */
const follow = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeName).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const) return JSON.stringify(schema.const);
  return schema.type === "array" ? `list of ${typeName(schema.items)}` : schema.type ?? "any";
}

function fields(schema) {
  const rows = Object.entries(schema?.properties ?? {}).map(([name, field]) =>
    element("tr", "", element("td", "", element("code", name)), element("td", typeName(field)), element("td", field.description ?? "")));
  if (!rows.length) return "";
  const head = element("tr", "", ...["field", "type", "meaning"].map((text) => element("th", text)));
  return element("table", "", element("thead", "", head), element("tbody", "", ...rows));
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const body = Object.values(operation.requestBody?.content ?? {})[0]?.schema;
    document.getElementById("paths").append(
      element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.description ?? ""), fields(follow(body)));
  }
}
const named = Object.entries(api.components.schemas).filter(([name]) => /^(Segment|Message|.*Part|AudioOptions|InputAudio)/.test(name));
for (const [name, schema] of named) {
  document.getElementById("paths").append(element("h2", name), element("p", schema.description ?? ""), fields(schema));
}
