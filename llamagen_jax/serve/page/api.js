// The server's HTTP API.

const KEY = "llamagen_jax.key";

/** An answer that is no success; `status` is 0 where none came. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export const apiRoot = () => new URL("v1", document.baseURI).href;

export const hasKey = () => Boolean(localStorage.getItem(KEY));

export const keepKey = (key) => localStorage.setItem(KEY, key);

/** What the server draws with, as /v1/models tells it. */
export async function model() {
  const answer = await ask("models");
  return (await answer.json()).data[0];
}

/** Whether the server takes requests. */
export async function isReady() {
  try {
    return (await fetch(new URL("readyz", document.baseURI))).ok;
  } catch {
    return false;
  }
}

/** Draws, and yields the events of the stream as they come. */
export async function* draw(request, signal) {
  const body = { ...request, response_format: "b64_json", stream: true, partial_rows: true };
  const answer = await ask("images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const event of events(answer.body)) {
    if (event.error) throw new ApiError(sentence(event.error.message), { status: 500 });
    yield event;
  }
}

async function ask(path, { headers = {}, ...options } = {}) {
  const key = localStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(`${apiRoot()}/${path}`, { headers, ...options });
  } catch (error) {
    throw options.signal?.aborted ? error : new ApiError(away());
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const told = (await answer.json().catch(() => ({}))).error ?? {};
  const seconds = answer.headers.get("Retry-After");
  const messages = {
    429: `The server is full. Try again ${seconds ? `in ${seconds} s` : "soon"}.`,
    503: "The server is stopping or not ready, and takes no images now.",
  };
  const message = messages[answer.status] ?? sentence(told.message ?? `status ${answer.status}`);
  return new ApiError(message, { status: answer.status, param: told.param });
}

const away = () => `The server at ${location.host} does not answer. Is it still running?`;

/** An error of the server as a line of the page: with a capital and a full stop. */
function sentence(message) {
  const line = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.?!]$/.test(line) ? line : `${line}.`;
}

/** The data of server-sent events; a stream that breaks off throws. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(away());
  }
}
