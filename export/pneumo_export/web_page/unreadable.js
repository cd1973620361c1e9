/** A picture that cannot be read. Its text is an English sentence of pneumo_edge/words.json, or what is wrong with the
 * bytes, to stand in one. */
export class Unreadable extends Error {
  constructor(text, whole = false) {
    super(text);
    this.whole = whole;
  }
}

/** A sentence about the file itself. */
export const refuse = (text) => new Unreadable(text, true);
