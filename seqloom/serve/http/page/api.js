// The server's API as this page uses it: the model's name, and one streamed answer.

const KEY = "seqloom.key";

export class Refused extends Error {
  // The server's answer to a request that it does not carry out.
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class CutOff extends Error {}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = {
    ...(options.body && { "Content-Type": "application/json" }),
    ...(key && { Authorization: `Bearer ${key}` }),
  };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    const wait = Number.parseFloat(response.headers.get("Retry-After"));
    const message = found.error?.message ?? response.statusText;
    throw new Refused(response.status, message, Number.isFinite(wait) ? wait : null);
  }
  return response;
}

export async function model() {
  return (await (await call("v1/models")).json()).data[0];
}

// The chunks of an answer, to a conversation or to a plain text.
// Throws Refused, CutOff when the stream ends before its time, AbortError when stopped.
export async function* stream(body, signal) {
  const path = body.messages ? "v1/chat/completions" : "v1/completions";
  const response = await call(path, { method: "POST", body: JSON.stringify(body), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message, null);
    yield chunk;
  }
  throw new CutOff();
}

// Data of server-sent events, however the bytes are cut.
async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim(); // every event is one line
  }
}
