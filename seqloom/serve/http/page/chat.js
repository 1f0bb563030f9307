// The chat page: one conversation in memory, one answer at a time.

import { CutOff, Refused, model, stream } from "./api.js";
import { BUDGETS, assistantTurn, figures, take, toMessages, toText } from "./conversation.js";
import { askKey, keyAccepted } from "./key.js";
import { element } from "./markdown.js";
import { AssistantView, UserView, fit } from "./view.js";

const PLAIN_TOKENS = 256; // of a base model's answer, which knows no end of its own

const at = (id) => document.getElementById(id);
const log = at("log"), scroller = document.querySelector("main"), say = at("say"), settings = at("settings");
let views = [];
let served = null; // the model's entry in the API's list
let underway = null; // AbortController of the answer that is being written
let tools = []; // as last given without a mistake

// ---- answers

async function answer() {
  const turn = assistantTurn(plain());
  const view = new AssistantView(turn, { regenerate, sendResults: answer });
  const body = request();
  const controller = new AbortController();
  add(view);
  setBusy(controller);
  let drawn = false, note = null;
  const draw = () => {
    drawn = false;
    if (underway === controller) keepBottom(() => { view.update(); showLive(turn); });
  };
  try {
    for await (const chunk of stream(body, controller.signal)) {
      take(turn, chunk);
      if (!drawn) { drawn = true; requestAnimationFrame(draw); }
    }
    if (turn.finish === "length" && !turn.plain) {
      note = { text: "Cut short: the answer reached its limit of tokens (Settings)." };
    }
  } catch (error) {
    note = explain(error);
    if (error instanceof Refused && error.status === 401 && views.includes(view) && await askKey()) {
      setBusy(null);
      return regenerate();
    }
  }
  if (underway !== controller) return undefined; // the conversation was begun anew meanwhile
  setBusy(null);
  keepBottom(() => { view.finish(note); showLive(turn); });
  at("status").textContent = note?.text ?? "The answer is complete.";
  return undefined;
}

function request() {
  const limit = at("max-tokens").valueAsNumber, turns = views.map((view) => view.turn);
  const drawing = {
    ...(served && { model: served.id }),
    stream: true,
    temperature: at("temperature").valueAsNumber,
    top_p: at("top-p").valueAsNumber,
    ...(!Number.isNaN(limit) && { max_tokens: limit }),
  };
  if (plain()) {
    return { max_tokens: PLAIN_TOKENS, ...drawing, stream_options: { include_usage: true }, prompt: toText(turns) };
  }
  const budget = BUDGETS[at("budget").value];
  return {
    ...drawing,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    ...(budget !== null && thinks() && { thinking_tokens: budget }),
    ...(tools.length && { tools }),
    messages: toMessages(turns, at("system").value),
  };
}

// What an error means and what can be done about it. `again`: worth trying once more as it is.
function explain(error) {
  if (error.name === "AbortError") return { text: "Stopped." };
  if (error instanceof CutOff) return { text: "The connection ended in the middle of the answer.", again: true };
  if (!(error instanceof Refused)) return { text: "The server cannot be reached. Is it still running?", again: true };
  const wait = error.retryAfter ? ` in ${Math.ceil(error.retryAfter)} s` : " in a moment";
  if (error.status === 401) return { text: "The server wants its key before it answers.", again: true };
  if (error.status === 429) return { text: `The server is busy. Try again${wait}.`, again: true };
  if (error.status === 503) return { text: `The model is not ready: ${error.message}. Try again${wait}.`, again: true };
  return { text: `The server says: ${error.message}`, again: true };
}

function regenerate() {
  const last = views.at(-1);
  if (underway || !last || !ready()) return;
  if (last.turn.role === "assistant") cut(views.length - 1);
  answer();
}

function resend(view, text) {
  if (!ready()) return;
  underway?.abort();
  cut(views.indexOf(view));
  ask(text);
}

function ask(text) {
  const turn = { role: "user", content: text };
  const view = new UserView(turn, (changed) => resend(view, changed));
  add(view);
  scroller.scrollTop = scroller.scrollHeight;
  say.focus();
  answer();
}

function add(view) {
  views.push(view);
  keepBottom(() => log.append(view.element));
  at("empty").hidden = true;
}

function cut(length) {
  for (const view of views.splice(length)) view.element.remove();
  at("empty").hidden = views.length > 0;
}

function setBusy(controller) {
  underway = controller;
  const busy = controller !== null;
  document.body.classList.toggle("answering", busy);
  log.ariaBusy = String(busy);
  Object.assign(at("send"), { ariaLabel: busy ? "Stop" : "Send", title: busy ? "Stop (Esc)" : "Send (Enter)" });
  at("export").disabled = busy || views.length === 0;
  if (busy) {
    at("status").textContent = "The model is answering.";
    at("live").textContent = "waiting";
  }
}

function showLive(turn) {
  at("live").replaceChildren(...figures(turn).map((text) => element("span", {}, text)));
}

// Follow the text only while the reader is at its end.
function keepBottom(change) {
  const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  change();
  if (follows) scroller.scrollTop = scroller.scrollHeight;
}

// ---- the form and the keyboard

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (underway) underway.abort();
  else send();
});

function send() {
  const text = say.value.trim();
  if (!text || underway || !ready()) return;
  say.value = "";
  fit(say);
  ask(text);
}

say.addEventListener("input", () => fit(say));
say.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !say.value && !underway) {
    const last = views.findLast((view) => view.turn.role === "user");
    if (last) {
      event.preventDefault();
      last.edit();
    }
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("key-dialog").open) return;
  if (underway) underway.abort();
  else if (!settings.hidden) openSettings(false);
});

at("anew").addEventListener("click", () => {
  const controller = underway;
  setBusy(null);
  controller?.abort();
  cut(0);
  at("live").textContent = "";
  at("export").disabled = true;
  say.focus();
});

at("export").addEventListener("click", () => {
  const { messages, prompt, ...asked } = request();
  const text = JSON.stringify({ exported: new Date().toISOString(), settings: asked, messages, text: prompt }, null, 2);
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a", { href, download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});

// ---- settings

function openSettings(open) {
  keepBottom(() => { settings.hidden = !open; });
  at("open-settings").ariaExpanded = String(open);
  if (open) settings.querySelector("label:not([hidden]) > :is(input, textarea)").focus();
  else at("open-settings").focus();
}

at("open-settings").addEventListener("click", () => openSettings(settings.hidden));
settings.addEventListener("submit", (event) => event.preventDefault());
at("tools").addEventListener("input", () => {
  let fault = "";
  try {
    const given = JSON.parse(at("tools").value.trim() || "[]");
    if (Array.isArray(given)) tools = given;
    else fault = "This must be a JSON list.";
  } catch (error) {
    fault = `This is not JSON: ${error.message}`;
  }
  at("tools").setCustomValidity(fault);
});

// Whether the settings can be sent; if not, they are shown with what is wrong.
function ready() {
  if (settings.checkValidity()) return true;
  openSettings(true);
  return settings.reportValidity();
}

const thinks = () => served?.thinking !== false;
const plain = () => served?.chat === false; // a base model, which goes on with a text

function showBudget() {
  const budget = BUDGETS[at("budget").value];
  const words = budget === null ? "unlimited" : budget === 0 ? "off" : `${budget.toLocaleString("en")} tokens`;
  at("budget-shown").textContent = words;
  at("budget").setAttribute("aria-valuetext", words);
}

at("budget").addEventListener("input", showBudget);

// ---- the beginning

async function begin() {
  try {
    served = await model();
    keyAccepted();
    at("model").textContent = served.id;
    at("thinking").hidden = !thinks();
    for (const name of ["system", "tools"]) at(name).parentElement.hidden = plain();
    document.title = `${served.id} · seqloom`;
  } catch (error) {
    if (error instanceof Refused && error.status === 401 && await askKey()) return begin();
    at("model").textContent = "not reached";
    at("live").textContent = explain(error).text;
  }
  return undefined;
}

showBudget();
begin();
