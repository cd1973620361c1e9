// The words of the page in the language of who reads it: pneumo_edge/words.json, as pneumo_edge/words.py has it.

import { browser, element } from "./dom.js";

let catalogue = { languages: {}, words: {}, sentences: [] };
let patterns = [];
let language = "en";
const listeners = [];
const KINDS = { low: "[0-9]+", high: "[0-9]+", site: "[^()]+" }; // what may stand in a place, where that is not anything

/** Takes the catalogue, and the language that was chosen here before or that the browser asks for (Accept-Language). */
export function learn(learnt) {
  catalogue = learnt;
  patterns = catalogue.sentences
    .map((each) => ({ each, own: each.en.replace(/\{\w+\}/g, "").length, pattern: patternOf(each.en) }))
    .sort((a, b) => b.own - a.own);
  const wished = [browser.get("language"), ...navigator.languages].map((each) => each.slice(0, 2).toLowerCase());
  speak(wished.find((each) => each in catalogue.languages) ?? "en");
}

/** Speaks another language from now on. */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = language;
  translate(document);
  for (const listener of listeners) listener();
}

/** Speaks it also the next time. */
export function choose(chosen) {
  browser.set("language", chosen);
  speak(chosen);
}

/** Calls `listener` whenever the language has changed. */
export const whenSpoken = (listener) => listeners.push(listener);

/** The choice of a language, each by its own name. */
export function fillLanguages(select) {
  select.replaceChildren(
    ...Object.entries(catalogue.languages).map(([code, name]) => element("option", name, { value: code, lang: code })),
  );
  select.value = language;
  select.onchange = () => choose(select.value);
}

/** Puts the words in where a part of the page names them. */
function translate(root) {
  for (const each of root.querySelectorAll("[data-word]")) each.textContent = t(each.dataset.word);
  for (const each of root.querySelectorAll("[data-label]")) {
    each.setAttribute("aria-label", t(each.dataset.label));
    if (each.tagName === "BUTTON") each.title = t(each.dataset.label);
  }
  for (const each of root.querySelectorAll("[data-hint]")) each.placeholder = t(each.dataset.hint);
}

/** A word by its id, with values in its places. */
export function t(id, values = {}) {
  const text = catalogue.words[id];
  return text ? fill(text[language], values) : id;
}

export const has = (id) => id in catalogue.words;

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);

function patternOf(text) {
  const source = text
    .split(/\{(\w+)\}/)
    .map((part, i) => (i % 2 ? `(?<${part}>${KINDS[part] ?? ".+?"})` : part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")))
    .join("");
  return new RegExp(`^(?:${source})$`, "s");
}

/** An English sentence of the runtime in this language; what stands in its places likewise. */
export function translated(text) {
  if (language === "en") return text;
  if (/^\d+(?:\.\d+)?%$/.test(text)) {
    return t("percent", { number: text.slice(0, -1).replace(".", t("decimal")) });
  }
  for (const { each, pattern } of patterns) {
    const found = pattern.exec(text);
    if (!found) continue;
    const places = Object.entries(found.groups ?? {}).map(([name, value]) => [name, translated(value)]);
    return fill(each[language], Object.fromEntries(places));
  }
  return text;
}

/** The same as a whole sentence; a name at its beginning stays as it is. */
export function sentence(text) {
  const said = translated(text);
  if (!said) return "";
  const begun = /^\p{Ll}+ /u.test(said) ? said.charAt(0).toUpperCase() + said.slice(1) : said;
  return /[.?]$/.test(begun) ? begun : `${begun}.`;
}

/** A share of 1 in percent. */
export const percent = (share, digits = 1) =>
  t("percent", { number: (100 * share).toFixed(digits).replace(".", t("decimal")) });

/** A probability: never said to be certain. */
export const chance = (p) =>
  p >= 0.9995 ? t("over", { share: percent(0.999) }) : p < 0.0005 ? t("under", { share: percent(0.001) }) : percent(p);

/** The name of an operating point; that of a bundle's own stays as it is. */
export const point = (name) => t(name);

/** A moment of today by its time, another with its day. */
export function clock(moment, long = false) {
  const when = new Date(moment);
  const time = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  const day = { day: "numeric", month: "short", ...(long ? { year: "numeric" } : {}) };
  const today = when.toDateString() === new Date().toDateString();
  return when.toLocaleString(language === "en" ? "en-GB" : language, today && !long ? time : { ...day, ...time });
}
