// What was said: turns as they are shown, and the same as messages of the API.
//
// {role: "user", content}
// {role: "assistant", plain, content, reasoning, calls: [{id, name, arguments, result}], finish, usage, clock}
// `plain` text is no Markdown: it is what a base model writes.
// `clock` holds milliseconds: of the request, the first token, the first token after thinking, and the newest.

export const BUDGETS = [0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, null]; // null: as long as the model likes

export const assistantTurn = (plain) => ({
  role: "assistant", plain, content: "", reasoning: "", calls: [], finish: null, usage: null, pieces: 0,
  clock: { asked: performance.now(), first: null, thought: null, last: null },
});

// Add one chunk of the stream to an assistant's turn.
export function take(turn, chunk) {
  turn.usage = chunk.usage ?? turn.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { reasoning_content: reasoning, content, tool_calls: calls } = choice.delta ?? { content: choice.text };
  if (reasoning || content || calls) {
    const { clock } = turn;
    clock.last = performance.now();
    clock.first ??= clock.last;
    if (content || calls) clock.thought ??= clock.last;
    turn.pieces += 1;
  }
  turn.reasoning += reasoning ?? "";
  turn.content += content ?? "";
  for (const piece of calls ?? []) {
    const call = (turn.calls[piece.index] ??= { id: "", name: "", arguments: "", result: "" });
    call.id ||= piece.id ?? "";
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
  turn.finish = choice.finish_reason ?? turn.finish;
}

export function toMessages(turns, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") {
      messages.push({ role: "user", content: turn.content });
      continue;
    }
    const calls = turn.calls.map((call) => (
      { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }
    ));
    if (!turn.content && !turn.reasoning && !calls.length) continue; // an answer that failed before it began
    messages.push({
      role: "assistant", content: turn.content,
      ...(turn.reasoning && { reasoning_content: turn.reasoning }),
      ...(calls.length && { tool_calls: calls }),
    });
    for (const { id, result } of turn.calls) {
      if (result) messages.push({ role: "tool", tool_call_id: id, content: result });
    }
  }
  return messages;
}

// The conversation with a base model: one text that both sides append to, each message on a line of its own.
export function toText(turns) {
  return turns.reduce((text, { role, content }) => {
    const begins = role === "user" && text && !text.endsWith("\n");
    return text + (begins ? "\n" : "") + content;
  }, "");
}

// The figures of an answer: rate of tokens, share of guesses that were right, share of the prompt that was remembered.
export function figures(turn) {
  const { usage, clock } = turn;
  const tokens = usage?.completion_tokens ?? turn.pieces;
  const seconds = (clock.last - clock.first) / 1000;
  const details = usage?.completion_tokens_details ?? {};
  const { accepted_prediction_tokens: right = 0, rejected_prediction_tokens: wrong = 0 } = details;
  const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  const said = [];
  if (tokens > 1 && seconds > 0) said.push(`${rounded((tokens - 1) / seconds)} tokens/s`);
  if (tokens) said.push(`${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
  if (right + wrong) said.push(`${percent(right, right + wrong)} guessed right`);
  if (cached) said.push(`${percent(cached, usage.prompt_tokens)} cached`);
  return said;
}

const rounded = (value) => value.toFixed(value < 10 ? 1 : 0);
const percent = (part, whole) => `${Math.round((100 * part) / whole)} %`;
