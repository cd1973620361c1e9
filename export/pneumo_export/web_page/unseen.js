// What a film says of its patient and its view that the model has not learned from: pneumo_edge/unseen.py.

const SPELLINGS = {
  AP: ["AP"],
  PA: ["PA"],
  LATERAL: ["LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"],
  DECUBITUS: ["LLD", "RLD", "DECUBITUS"],
  OBLIQUE: ["LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "OBLIQUE"],
};
const WORDS = {
  AP: "an AP view",
  PA: "a PA view",
  LATERAL: "a lateral view",
  DECUBITUS: "a view of a patient lying on the side",
  OBLIQUE: "an oblique view",
};

/** AP, PA, LATERAL, DECUBITUS or OBLIQUE for a view as a file or a manifest writes it, "" for other text. */
export const viewNamed = (text) =>
  Object.keys(SPELLINGS).find((view) => SPELLINGS[view].includes(text.trim().toUpperCase())) ?? "";

/** A sentence for an age, and one for a view, that no site has shown to the model. `age` in years or null. */
export function unseen(age, view, sites = []) {
  const said = [];
  const ages = sites.filter((site) => site.ages).map((site) => [site.name, site.ages]);
  // Ages are counted in whole years: who is five years and eleven months old is five.
  if (age !== null && ages.length && ages.every(([, known]) => age < known.low || Math.floor(age) > known.high)) {
    const seen = ages.map(([name, known]) => `${Math.floor(known.low)} to ${Math.floor(known.high)} years (${name})`);
    said.push(`the patient is ${inWords(age)} old; the model has seen ${listed(seen)}`);
  }
  const counted = sites.flatMap((site) => Object.entries(site.views ?? {}).filter(([, films]) => films));
  const views = [...new Set(counted.map(([name]) => viewNamed(name)))].filter(Boolean).sort();
  if (view && !(views.length ? views : ["AP", "PA"]).includes(view)) {
    const seen = views.length ? `${listed(views)} views` : "frontal films";
    said.push(`${WORDS[view]}; the model has seen ${seen} only`);
  }
  return said;
}

function inWords(age) {
  if (age >= 90) return "over 89 years"; // an exact one could identify the person
  if (age < 1) return "less than 1 year";
  return age >= 2 ? `${Math.floor(age)} years` : "1 year";
}

const listed = (words) => (words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words[0]);
