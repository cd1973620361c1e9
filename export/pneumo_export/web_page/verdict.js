// From what the model puts out to the record that people are shown: pneumo_edge/classifier.py and plausibility.py.

import { unseen } from "./unseen.js";
import { findRegion, rounded, sigmoid } from "./region.js";

const UNUSUAL =
  "the picture is unlike the chest films that the model has learned from: an unusual film, or no frontal chest film";

const logOdds = (p) => Math.log(p) - Math.log(1 - p);

/** A sentence for each sign that the picture is no chest film to be judged. `limits` are in constants.json. */
export function objections({ pixels, width, height, chroma, doubts: said }, limits) {
  const found = [...said];
  if (chroma > limits.max_chroma) found.push("the picture is in colour, an X-ray is grey");
  if (contrast(pixels) < limits.min_contrast) found.push("the picture is almost blank");
  if (Math.min(width, height) < limits.min_side) found.push(`the picture is tiny (${width} x ${height} pixels)`);
  if (Math.max(width, height) > limits.max_aspect * Math.min(width, height)) {
    found.push(`the picture is ${width} x ${height} pixels, which is not the shape of a chest film`);
  }
  return found;
}

/** The standard deviation of the grey levels. */
export function contrast(pixels) {
  let [sum, squares] = [0, 0];
  for (const level of pixels) [sum, squares] = [sum + level, squares + level * level];
  return Math.sqrt(pixels.length * squares - sum * sum) / pixels.length;
}

/** The operating points with their thresholds at a prevalence: by Bayes another one adds the difference of the log odds,
 * so that the verdict stays. */
export function pointsAt({ calibration, operating_points: points }, prevalence) {
  const shift = logOdds(prevalence) - logOdds(calibration.prevalence);
  const moved = (point) => ({ ...point, threshold: sigmoid(logOdds(point.threshold) + shift) });
  return Object.fromEntries(Object.entries(points).map(([name, point]) => [name, moved(point)]));
}

/** The record of a film. `judged` is what judge.js made of it, `description` the bundle's model.json, `file` the model
 * file's name, `point` an operating point's name. */
export function record(judged, name, description, file, point, prevalence) {
  const { calibration } = description;
  const { novelty_limit: limit, region_threshold: threshold } = description.files[file];
  const shift = logOdds(prevalence) - logOdds(calibration.prevalence);
  const odds = calibration.scale * judged.logit + calibration.offset + shift;
  const cut = logOdds(description.operating_points[point].threshold) + shift;
  const doubts = [...judged.doubts, ...(judged.novelty > limit ? [UNUSUAL] : [])];
  const label = doubts.length ? null : description.labels[odds >= cut ? 1 : 0];
  let region = null;
  if (typeof threshold === "number") {
    region = rounded(findRegion(judged.heatmap, threshold, judged.width, judged.height));
    if (label !== "PNEUMONIA") region = { ...region, polygons: [], area: 0 };
  }
  return {
    path: name,
    label,
    probability: sigmoid(odds),
    logit: judged.logit,
    threshold: sigmoid(cut),
    operating_point: point,
    prevalence,
    novelty: judged.novelty,
    in_distribution: !doubts.length,
    warnings: [...doubts, ...judged.warnings, ...unseen(judged.age, judged.view, description.provenance.sites)],
    model: description.name,
    file,
    contrast: judged.contrast,
    region,
    milliseconds: judged.milliseconds,
  };
}
