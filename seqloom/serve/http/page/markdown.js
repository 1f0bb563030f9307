// The part of Markdown that answers use, as elements. What a model writes becomes text nodes and never markup.
//
// `show` may be called with ever longer beginnings of a text: blocks that stay as they were keep their elements, so a
// long answer streams in linear time and what the reader has selected stays selected.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function show(text, container) {
  const blocks = split(text);
  blocks.forEach((source, place) => {
    const old = container.children[place];
    if (old?.source === source) return;
    const made = block(source);
    made.source = source;
    if (old) old.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > blocks.length) container.lastChild.remove();
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const DASHES = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/;

// The sources of the blocks: fences whole, other lines together until an empty line or a line that begins a block.
function split(text) {
  const blocks = [];
  let lines = [], fence = null;
  const end = () => { if (lines.length) blocks.push(lines.join("\n")); lines = []; };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (fence) {
      lines.push(line);
      if (mark && mark[1].startsWith(fence) && !mark[2].trim()) { end(); fence = null; }
    } else if (mark) {
      end();
      lines.push(line);
      fence = mark[1];
    } else if (HEADING.test(line) || RULE.test(line)) {
      end();
      lines.push(line);
      end();
    } else if (!line.trim()) {
      if (!(lines.length && ITEM.test(lines[0]))) end(); // an empty line in a list does not end it
      else lines.push("");
    } else {
      if (lines.length && startsAnew(line, lines)) end();
      lines.push(line);
    }
  }
  end();
  return blocks;
}

function startsAnew(line, lines) {
  if (ITEM.test(lines[0])) return lines.at(-1) === "" && !ITEM.test(line) && !/^\s/.test(line);
  return ITEM.test(line) || line.startsWith(">") !== lines[0].startsWith(">");
}

function block(source) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(source);
  if (heading) return inline(heading[2], element(`h${Math.min(heading[1].length + 2, 6)}`));
  if (RULE.test(source)) return element("hr");
  if (ITEM.test(lines[0])) return list(lines);
  if (lines[0].startsWith(">")) {
    const quote = element("blockquote");
    show(lines.map((line) => line.replace(/^> ?/, "")).join("\n"), quote);
    return quote;
  }
  if (lines.length > 1 && lines[0].includes("|") && DASHES.test(lines[1])) return table(lines);
  return inline(source, element("p"));
}

function code(lines, [, mark, language]) {
  const closed = lines.length > 1 && new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`).test(lines.at(-1));
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  return element("figure", { className: "code" },
    element("figcaption", {}, language.trim().split(/\s/)[0], copyButton(() => text)),
    element("pre", { tabIndex: 0 }, element("code", {}, text)));
}

export function copyButton(text) {
  const button = element("button", { type: "button", className: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch { // no permission, or not a secure page
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

// A list with lists inside by indentation; an indented line goes on the item before it.
function list(lines) {
  const items = [];
  const margin = ITEM.exec(lines[0])[1].length;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= margin + 1) {
      items.push({ mark: item[2], width: line.length - item[3].length, lines: [item[3]] });
    } else items.at(-1).lines.push(line.slice(Math.min(line.search(/\S|$/), items.at(-1).width)));
  }
  const number = Number.parseInt(items[0].mark, 10);
  const made = Number.isNaN(number) ? element("ul") : element("ol", { start: number });
  for (const item of items) {
    const entry = element("li");
    show(item.lines.join("\n"), entry);
    made.append(entry);
  }
  return made;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const sides = cells(lines[1]).map((dashes) => (/^:.*:$/.test(dashes) ? "center" : dashes.endsWith(":") ? "right" : null));
  const row = (line, tag) => element("tr", {}, ...cells(line).map((cell, place) =>
    inline(cell, element(tag, sides[place] ? { className: sides[place] } : {}))));
  return element("div", { className: "scroll", tabIndex: 0 },
    element("table", {},
      element("thead", {}, row(lines[0], "th")),
      element("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
}

const SPAN = new RegExp([
  /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, // code
  /\*\*(?=\S)([\s\S]*?\S)\*\*/, // bold
  /\*(?=[^\s*])([^*]*?[^\s*])\*/, // slanted
  /~~(?=\S)([\s\S]*?\S)~~/, // struck
  /\[([^\]\n]+)\]\(([^)\s]+)\)/, // label and target
  /(https?:\/\/[^\s<>"'`)\]]*[\w/])/, // address
].map((part) => part.source).join("|"));

function inline(text, into) {
  let rest = text;
  for (let found = SPAN.exec(rest); found; found = SPAN.exec(rest)) {
    const [whole, , raw, bold, slanted, struck, label, target, address] = found;
    if (found.index) into.append(rest.slice(0, found.index));
    if (raw !== undefined) into.append(element("code", {}, raw));
    else if (bold !== undefined) into.append(inline(bold, element("strong")));
    else if (slanted !== undefined) into.append(inline(slanted, element("em")));
    else if (struck !== undefined) into.append(inline(struck, element("s")));
    else into.append(link(label ?? address, target ?? address, whole));
    rest = rest.slice(found.index + whole.length);
  }
  if (rest) into.append(rest);
  return into;
}

// Addresses that lead elsewhere are the reader's to open; any other scheme stays text.
function link(label, target, whole) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return document.createTextNode(whole);
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer", title: target }, label);
}
