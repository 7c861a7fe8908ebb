// Elements, and text of models as text: what steers a terminal or a line's direction is shown by
// name. Nothing here or elsewhere on the page is ever parsed as HTML.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\u{e0000}-\u{e0fff}]/gu;

function named(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

/** Append `text` to `parent`: letters as they are, control and direction marks by name. */
export function appendText(parent, text) {
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match[0] === "\n" || match[0] === "\t") continue;
    if (match.index > from) parent.append(text.slice(from, match.index));
    parent.append(make("span", { class: "ctl" }, named(match[0])));
    from = match.index + match[0].length;
  }
  if (from < text.length) parent.append(text.slice(from));
}

/** A block of text, at most `most` characters of it until asked for all. */
export function textBlock(text, most = 4000, className = "text") {
  const block = make("div", { class: className });
  appendText(block, text.slice(0, most));
  if (text.length > most) {
    const more = make("button", { type: "button" }, `all ${text.length.toLocaleString("en")} characters`);
    more.addEventListener("click", () => {
      block.replaceChildren();
      appendText(block, text);
    });
    block.append(" … ", more);
  }
  return block;
}

export function shown(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(digits + 1).replace(/\.?0+$/, "");
}

export async function ask(path, parameters = []) {
  const query = new URLSearchParams(parameters).toString();
  const answer = await fetch(path + (query ? "?" + query : ""), { credentials: "same-origin" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
