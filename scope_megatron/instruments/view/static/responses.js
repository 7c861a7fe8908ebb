// The browser of groups: a list by filters, the responses of a prompt side by side.

import { appendText, ask, make, shown, textBlock } from "./text.js";

const MOST_TOKENS = 1500; // of a response, until asked for all
// how tokens can be coloured: [label, value of token i, value at full colour]
const SHADES = {
  teacher: ["teacher − student", (r, i) => difference(r.teacher_logprobs, r.student_logprobs, i), 3],
  engine: ["engine − student", (r, i) => difference(r.engine_logprobs, r.student_logprobs, i), 0.5],
  student: ["student's log-probability", (r, i) => r.student_logprobs?.[i], 3],
  entropy: ["student's entropy", (r, i) => r.entropy?.[i], 2],
  divergence: ["exact divergence", (r, i) => r.divergence?.[i], 2],
};

function difference(a, b, i) {
  return a?.[i] == null || b?.[i] == null ? null : a[i] - b[i];
}

export class ResponseBrowser {
  constructor() {
    this.form = document.getElementById("filters");
    this.list = document.getElementById("groups");
    this.panel = document.getElementById("group");
    this.shade = "teacher"; this.offset = 0; this.asked = 0;
    this.form.addEventListener("input", () => this.refresh(true));
    this.form.addEventListener("submit", (event) => event.preventDefault());
  }

  setRuns(runs) {
    const select = this.form.elements.run;
    if (select.options.length === runs.length) return;
    select.replaceChildren(...runs.map((run, i) => make("option", { value: i }, run.name)));
    const first = runs.findIndex((run) => run.responses);
    if (first > 0) select.value = String(first);
  }

  parameters() {
    return [...new FormData(this.form).entries(), ["offset", String(this.offset)]];
  }

  async refresh(anew = false) {
    if (anew) this.offset = 0;
    const number = ++this.asked, found = await ask("/api/responses", this.parameters());
    if (number !== this.asked) return; // a later question overtook this one
    document.getElementById("found").textContent =
      `${found.matching.toLocaleString("en")} responses in ${found.total.toLocaleString("en")} groups`;
    const entries = found.groups.map((group) => this.entry(group));
    if (!entries.length) entries.push(make("p", { class: "hint" }, "No response is like that. logging.rollouts says which are written down."));
    if (found.total > this.offset + found.groups.length) entries.push(this.turn("next", this.offset + found.groups.length));
    if (this.offset) entries.unshift(this.turn("back to the first", 0));
    this.list.replaceChildren(...entries);
    this.list.dataset.ready = String(number);
  }

  turn(label, offset) {
    return make("button", { type: "button", onclick: () => { this.offset = offset; this.refresh(); } }, label);
  }

  entry(group) {
    const title = make("div", { class: "hint" },
      `${group.kind === "eval" ? "evaluation after" : "step"} ${group.step}${group.set ? " · " + group.set : ""} · prompt ${group.group} · ` +
      `longest ${shown(group.tokens_max)}${group.weight_max == null ? "" : " · weight " + shown(group.weight_max, 2)}` +
      `${group.gap_max == null ? "" : " · gap " + shown(group.gap_max, 2)}`);
    const marks = make("div", { class: "marks" }, ...group.members.map((m) =>
      make("span", { class: `mark ${m.path ?? m.verdict ?? ""}`, title: `${m.verdict}, ${m.tokens} tokens` })));
    const key = JSON.stringify([group.kind, group.step, group.set, group.group]);
    const entry = make("button", { type: "button", class: "entry" + (key === this.open ? " on" : ""), "data-key": key,
      onclick: () => this.show(group, key) }, title, marks, textBlock(group.members[0]?.prompt ?? "", 90));
    return entry;
  }

  async show(group, key) {
    this.open = key;
    for (const entry of this.list.querySelectorAll(".entry")) entry.classList.toggle("on", entry.dataset.key === key);
    this.place = [["run", this.form.elements.run.value], ["kind", group.kind], ["step", group.step], ["set", group.set], ["group", group.group]];
    const rows = await ask("/api/group", [...this.place, ["most", MOST_TOKENS]]);
    if (this.open === key) this.draw(rows);
  }

  draw(rows) {
    this.rows = rows;
    const known = Object.entries(SHADES).filter(([, [, value]]) => rows.some((r) => (r.token_ids ?? []).some((_, i) => value(r, i) != null)));
    if (known.length && !known.some(([name]) => name === this.shade)) this.shade = known[0][0];
    const choice = make("select", { id: "shade", onchange: (event) => { this.shade = event.target.value; this.draw(rows); } },
      ...known.map(([name, [label]]) => make("option", { value: name, ...(name === this.shade ? { selected: "" } : {}) }, label)));
    const first = rows[0];
    this.detail = make("div", { id: "detail", hidden: "" });
    this.panel.replaceChildren(
      make("div", { class: "prompt" }, textBlock(first.prompt), textBlock("reference: " + (first.answer ?? []).join("  or  "), 400, "text hint")),
      make("div", { class: "bar" }, make("label", {}, "colour of tokens ", choice),
        make("span", { class: "hint" }, "blue: the first is more probable · orange: less · click a token")),
      make("div", { class: "columns" }, ...rows.map((row) => this.response(row))), this.detail);
  }

  response(row) {
    const facts = [["verdict", row.verdict + (row.finished ? "" : ", cut off")], ["path", row.path], ["weight", shown(row.weight)],
      ["student ppl", shown(row.student_perplexity)], ["teacher ppl", shown(row.teacher_perplexity)], ["tokens", row.response_tokens]];
    const text = make("div", { class: "text" });
    this.tokens(text, row, MOST_TOKENS);
    return make("article", { class: `response ${row.path ?? row.verdict ?? ""}` }, make("h3", {}, `response ${row.sample}`),
      make("div", { class: "facts" }, ...facts.flatMap(([name, value]) => [make("span", {}, name), make("b", {}, String(value ?? "–"))])), text);
  }

  tokens(parent, row, most) {
    const [, value, full] = SHADES[this.shade];
    const texts = row.tokens ?? [row.response];
    for (let i = 0; i < Math.min(texts.length, most); i++) {
      const span = make("span", { class: "token", onclick: () => this.tell(row, i, span) });
      const long = texts[i].length > 4000;
      appendText(span, long ? texts[i].slice(0, 4000) + "…" : texts[i]);
      const shade = value(row, i);
      if (shade != null) {
        const strength = Math.min(Math.abs(shade) / full, 1) * 0.75;
        const blue = this.shade === "entropy" || this.shade === "divergence" ? false : shade > 0;
        span.style.backgroundColor = blue ? `rgba(0,114,178,${strength})` : `rgba(230,130,0,${strength})`;
      }
      parent.append(span);
    }
    if (row.tokens && row.response_tokens > most) {
      const more = make("button", { type: "button", onclick: async () => {
        const rows = await ask("/api/group", this.place);
        Object.assign(row, rows.find((other) => other.sample === row.sample));
        parent.replaceChildren();
        this.tokens(parent, row, Infinity);
      } }, `all ${row.response_tokens.toLocaleString("en")} tokens`);
      parent.append(" … ", more);
    }
  }

  tell(row, i, span) {
    for (const other of this.panel.querySelectorAll(".token.on")) other.classList.remove("on");
    span.classList.add("on");
    const of = (values) => (values?.[i] == null ? "–" : `${shown(values[i])} (p = ${shown(Math.exp(values[i]))})`);
    const facts = [["token", `${row.token_ids?.[i]}, number ${i} of response ${row.sample}`], ["student", of(row.student_logprobs)],
      ["teacher", of(row.teacher_logprobs)], ["engine", of(row.engine_logprobs)], ["teacher − student", shown(difference(row.teacher_logprobs, row.student_logprobs, i))],
      ["entropy", shown(row.entropy?.[i])], ["exact divergence", shown(row.divergence?.[i])]];
    this.detail.replaceChildren(make("div", { class: "facts" }, ...facts.flatMap(([name, value]) => [make("span", {}, name), make("b", {}, value)])));
    this.detail.prepend(textBlock(JSON.stringify(row.tokens?.[i] ?? ""), 400));
    this.detail.hidden = false;
    this.tellAlternatives(row, i, span);
  }

  /** The likeliest tokens in its place, of both models, where the run wrote them down. */
  async tellAlternatives(row, i, span) {
    const found = await ask("/api/alternatives", [...this.place, ["sample", row.sample], ["token", i]]).catch(() => ({}));
    const known = Object.entries(found).filter(([, tokens]) => tokens);
    if (!known.length || !span.classList.contains("on")) return; // another was clicked meanwhile
    this.detail.append(make("div", { class: "alternatives" }, ...known.map(([whose, tokens]) => make("table", { "data-of": whose },
      make("tr", {}, make("th", {}, `the ${whose}'s likeliest`), make("th", {}, "p"), make("th", {}, "log p")),
      ...tokens.map((one) => make("tr", { class: one.id === row.token_ids?.[i] ? "chosen" : "", title: `token ${one.id}` },
        make("td", {}, textBlock(JSON.stringify(one.token), 80)), make("td", {}, shown(one.logprob == null ? null : Math.exp(one.logprob))),
        make("td", {}, shown(one.logprob))))))));
  }
}
