// Which of its grey levels are the film, where nothing in the file says it: pneumo_edge/levels.py, by counting.

/** Rounds as IEEE 754 and numpy do: a half goes to the even number. */
export function rint(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** How often each value of 16 bits or fewer comes; of those alone for which `counts(i)` holds. */
export function histogram(values, counts = null) {
  const found = new Uint32Array(values.BYTES_PER_ELEMENT === 1 ? 256 : 65536);
  for (let i = 0; i < values.length; i += 1) if (!counts || counts(i)) found[values[i]] += 1;
  return found;
}

/** The smallest and the largest value of the film, without what few pixels far away would make of them. */
export function filmRange(counted, { tail: share, reach, gap }) {
  const values = [];
  let all = 0;
  for (let value = 0; value < counted.length; value += 1) {
    if (counted[value]) values.push(value);
    all += counted[value];
  }
  const tail = Math.trunc(share * all);
  const reversed = values.slice().reverse();
  const from = (ordered) => {
    let passed = 0;
    return ordered.findIndex((value) => (passed += counted[value]) > tail);
  };
  const [low, high] = [from(values), from(reversed)];
  const [dark, light] = [values[low], reversed[high]];
  const span = light - dark;
  if (!span) return [values[0], reversed[0]];
  // Outwards from the rest, until there is a gap or it has gone too far.
  const follow = (ordered, at) => {
    let end = at;
    while (end > 0) {
      const next = ordered[end - 1];
      if (Math.abs(next - ordered[end]) > gap * span || Math.abs(next - ordered[at]) > reach * span) break;
      end -= 1;
    }
    return ordered[end];
  };
  return [follow(values, low), follow(reversed, high)];
}
