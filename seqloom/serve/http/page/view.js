// How turns look. A view holds the elements of one turn; `update` brings them up to what the turn holds now.

import { copyButton, element, show } from "./markdown.js";

const button = (label, act, className = "quiet") => {
  const made = element("button", { type: "button", className }, label);
  made.addEventListener("click", act);
  return made;
};

export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

export class UserView {
  constructor(turn, resend) {
    this.turn = turn;
    this.resend = resend;
    this.element = element("article", { className: "user", ariaLabel: "You" });
    this.update();
  }

  update() {
    this.element.replaceChildren(
      element("div", { className: "said" }, this.turn.content),
      element("div", { className: "actions" }, button("Edit", () => this.edit()), copyButton(() => this.turn.content)));
  }

  edit() {
    const area = element("textarea", { value: this.turn.content, ariaLabel: "Edit the message" });
    const send = () => { if (area.value.trim()) this.resend(area.value.trim()); };
    const leave = () => { this.update(); document.getElementById("say").focus(); };
    area.addEventListener("input", () => fit(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = [button("Cancel", leave), button("Send again", send, "strong")];
    this.element.replaceChildren(area, element("div", { className: "actions" }, ...buttons));
    fit(area);
    area.focus();
  }
}

export class AssistantView {
  // `actions`: regenerate(), and sendResults() once all tool calls have results.
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.thoughts = element("div", { className: "thoughts" });
    this.title = element("summary");
    this.fold = element("details", { hidden: true }, this.title, this.thoughts);
    this.answer = element("div", { className: "answer" });
    this.calls = element("div", { className: "calls" });
    this.foot = element("div");
    const parts = [this.fold, this.answer, this.calls, this.foot];
    this.element = element("article", { className: "assistant", ariaLabel: "The model" }, ...parts);
    this.update();
  }

  update() {
    const { turn } = this;
    this.element.classList.toggle("waiting", turn.clock.first === null);
    this.fold.hidden = !turn.reasoning;
    this.fold.classList.toggle("busy", turn.clock.thought === null);
    this.title.textContent = turn.clock.thought === null ? "Thinking" : thoughtFor(turn);
    show(turn.reasoning.trim(), this.thoughts);
    if (turn.plain) this.answer.replaceChildren(element("p", {}, turn.content));
    else show(turn.content.trimStart(), this.answer);
    turn.calls.forEach((call, place) => {
      const shown = callCard(call);
      if (this.calls.children[place]) this.calls.children[place].replaceWith(shown);
      else this.calls.append(shown);
    });
  }

  // The answer is over. `note`: what there is to say about its end, if anything.
  finish(note) {
    this.turn.clock.first ??= 0;
    if (this.turn.clock.last !== null) this.turn.clock.thought ??= this.turn.clock.last;
    this.update();
    const [label, look] = note?.again ? ["Try again", "strong"] : ["Regenerate", "quiet"];
    const again = button(label, this.actions.regenerate, look);
    again.classList.add("again"); // of the last answer alone
    const rest = [again];
    if (this.turn.content) rest.push(copyButton(() => this.turn.content));
    const said = note ? [element("p", { className: note.again ? "note" : "remark" }, note.text)] : [];
    this.foot.replaceChildren(...said, element("div", { className: "actions" }, ...rest));
    if (this.turn.finish === "tool_calls") this.askResults();
  }

  askResults() {
    const areas = this.turn.calls.map((call, place) => {
      const area = element("textarea", { rows: 1, placeholder: `What ${call.name} answers` });
      area.ariaLabel = `Result of ${call.name}`;
      area.addEventListener("input", () => fit(area));
      this.calls.children[place].append(area);
      return area;
    });
    const send = button("Send results", () => {
      const missing = areas.find((area) => !area.value.trim());
      if (missing) return missing.focus();
      this.turn.calls.forEach((call, place) => { call.result = areas[place].value.trim(); });
      this.update();
      send.remove();
      return this.actions.sendResults();
    }, "strong");
    send.classList.add("again"); // as long as nothing else was said
    this.foot.querySelector(".actions").prepend(send);
  }
}

function thoughtFor({ clock, usage }) {
  const seconds = (clock.thought - clock.first) / 1000;
  const tokens = usage?.completion_tokens_details?.reasoning_tokens;
  const many = tokens ? `, ${tokens.toLocaleString("en")} tokens` : "";
  return `Thought for ${seconds.toFixed(seconds < 10 ? 1 : 0)} s${many}`;
}

function callCard({ name, arguments: given, result }) {
  let shown = given;
  try { shown = JSON.stringify(JSON.parse(given), null, 2); } catch { /* still arriving, or not JSON: as it is */ }
  const card = element("figure", { className: "call" },
    element("figcaption", {}, "calls ", element("b", {}, name)), element("pre", { tabIndex: 0 }, shown));
  if (result) card.append(element("div", { className: "result" }, result));
  return card;
}
