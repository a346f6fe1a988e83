// A request as code to copy.

const KEY = "OPENAI_API_KEY";

export function curl(request, root, hasKey) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $${KEY}"` : "";
  return `curl ${root}/images/generations --output images.json${key} \\
  -H "Content-Type: application/json" \\
  -d '${body}'`;
}

/** For the client of the package `openai`, which has arguments for some fields only. */
export function python(request, root, hasKey) {
  const { model, prompt, n, ...ours } = request;
  const fields = Object.entries(ours).map(([name, value]) => `        "${name}": ${literal(value)},`);
  return `import base64
${hasKey ? "import os\n" : ""}from pathlib import Path

from openai import OpenAI

client = OpenAI(
    base_url="${root}",
    api_key=${hasKey ? `os.environ["${KEY}"]` : '"none"'},
)
answer = client.images.generate(
    model=${literal(model)},
    prompt=${literal(prompt)},
    n=${n},
    extra_body={
${fields.join("\n")}
    },
)
for i, image in enumerate(answer.data):
    Path(f"{i}.png").write_bytes(base64.b64decode(image.b64_json))`;
}

// Strings and finite numbers are written in JSON as in Python.
const literal = (value) => (value === true ? "True" : JSON.stringify(value));
