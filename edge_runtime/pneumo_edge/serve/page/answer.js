// What the model says of a film, in words: verdict, scale, remarks and facts.

import { $, element, pairs, shape } from "./dom.js";
import { chance, clock, percent, point, sentence, t, translated } from "./words.js";

export const short = (key) => key.slice(0, 8);

/** The shape of what is known of a film, and the id of its word. */
export function outcome(film) {
  if (film.state === "received") return "received";
  if (film.in_distribution === null) return "failed";
  return film.label ?? "withheld";
}

/** Why parts of its answer have not reached where they are to go. */
export function unsent({ sendings }) {
  const several = new Set(sendings.map((each) => each.destination)).size > 1;
  const failed = sendings.filter((each) => each.error && each.state !== "sent");
  return [...new Set(failed.map((each) => (several ? `${each.destination}: ${each.error}` : each.error)))];
}

/** Why it could not be judged: what is told of it without what is told of its sending. */
const failure = (film) => unsent(film).reduce((text, why) => text.replace(`; ${why}`, ""), film.error ?? "");

/** Writes the answer; `name` is that of its file where this tab knows it, `size` what there is of the picture. */
export function write(film, name, size) {
  const form = outcome(film);
  const { record } = film;
  $("answer").hidden = false;
  $("shape").setAttribute("href", `#${form}`);
  $("word").textContent = t(form);
  $("verdict").querySelector(".kicker").hidden = !record;

  $("odds").hidden = !record?.label;
  if (record?.label) {
    const said = { share: chance(record.probability), threshold: percent(record.threshold), point: point(record.operating_point) };
    $("share").textContent = said.share;
    $("condition").textContent = t("probability.at", { prevalence: percent(record.prevalence) });
    $("point").textContent = t("cut", said);
    $("scale").style.setProperty("--at", `${100 * record.probability}%`);
    $("scale").style.setProperty("--cut", `${100 * record.threshold}%`);
    $("scale").setAttribute("aria-label", t("scale", said));
  }

  const remarks = [
    ...(record ? record.warnings : [failure(film)]),
    ...unsent(film).map((why) => `the answer has not been sent: ${why}`),
  ].filter(Boolean);
  $("reasons").hidden = !remarks.length;
  $("reasons-title").textContent = t(!record ? "why" : record.label ? "remarks" : "why.withheld");
  $("remarks").replaceChildren(
    ...remarks.map((text) => {
      const item = element("li");
      item.append(shape("remark"), element("span", sentence(text)));
      return item;
    }),
  );

  $("facts").replaceChildren(...pairs(facts(film, name, size)));
  $("resend").hidden = !film.sendings.length;
}

function facts(film, name, size) {
  const { record } = film;
  const time = clock(film.received, true);
  return [
    ...(name ? [[t("name"), name]] : []),
    ...(film.accession ? [[t("accession"), film.accession]] : []),
    ...(film.patient_id ? [[t("patient"), film.patient_id]] : []),
    [t("film"), short(film.key)],
    [t("arrived"), t(film.source === "page" ? "by.upload" : "by.dicom", { time })],
    ...(size ? [[t("size"), t("size.of", { ...size, bits: Math.ceil(Math.log2(size.levels + 1)) })]] : []),
    ...(record?.region && record.label === "PNEUMONIA" ? [[t("region"), region(record.region)]] : []),
    ...(film.state === "sent" ? [[t("answer"), t("answer.sent")]] : []),
    ...(record ? [[t("model"), record.model], [t("file"), record.file]] : []),
  ];
}

const region = ({ polygons, area, strongest }) =>
  polygons.length ? t("region.area", { share: percent(area), strongest: percent(strongest, 0) }) : t("region.none");

/** The answer as one is told it. */
export function spoken(film) {
  const { record } = film;
  if (!record) return `${t("spoken.failed")} ${sentence(failure(film))}`;
  const why = record.warnings.map(translated).join("; ");
  if (!record.label) return t("spoken.withheld", { why });
  const prevalence = percent(record.prevalence);
  const said = t("spoken.says", { verdict: t(record.label).toLowerCase(), share: chance(record.probability), prevalence });
  return why ? `${said} ${t("spoken.note", { why })}` : said;
}
