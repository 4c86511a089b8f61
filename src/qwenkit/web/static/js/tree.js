/**
 * Conversations as trees: which turns are shown, which are variants of each other. Pure functions; knows neither page
 * nor storage.
 */

/** @typedef {import("./types.js").Turn} Turn */

export const ROOT = "";

/** A tree of turns with what is shown of it. */
export class Tree {
  /** @param {Turn[]} turns @param {[string, string][]} choices */
  constructor(turns, choices) {
    /** @type {Map<string, Turn>} */
    this.turns = new Map();
    /** @type {Map<string, Turn[]>} */
    this.children = new Map();
    /** @type {Map<string, string>} */
    this.choices = new Map(choices);
    for (const turn of turns) this.add(turn);
  }

  /** Puts a turn in, or a newer state of it. @param {Turn} turn */
  add(turn) {
    const old = this.turns.get(turn.id);
    this.turns.set(turn.id, turn);
    const siblings = this.children.get(turn.parent ?? ROOT) ?? [];
    if (old) siblings[siblings.indexOf(old)] = turn;
    else siblings.push(turn);
    // Almost always the newest comes last already.
    if (siblings.length > 1 && byAge(siblings[siblings.length - 2], turn) > 0) siblings.sort(byAge);
    this.children.set(turn.parent ?? ROOT, siblings);
  }

  /** All variants of a turn, itself included, oldest first. @param {Turn} turn */
  variants(turn) {
    return this.children.get(turn.parent ?? ROOT) ?? [turn];
  }

  /** The child of a turn that is shown: the one chosen, else the newest. @param {string} id */
  shownChild(id) {
    const children = this.children.get(id);
    if (!children?.length) return null;
    const chosen = this.turns.get(this.choices.get(id) ?? "");
    return chosen && (chosen.parent ?? ROOT) === id ? chosen : children[children.length - 1];
  }

  /** The turns that are shown, in order. @returns {Turn[]} */
  path() {
    const path = [];
    for (let turn = this.shownChild(ROOT); turn; turn = this.shownChild(turn.id)) path.push(turn);
    return path;
  }

  /** The turns that lead to one, itself included. @param {string | null} id @returns {Turn[]} */
  pathTo(id) {
    const path = [];
    for (let turn = this.turns.get(id ?? ""); turn; turn = this.turns.get(turn.parent ?? "")) path.push(turn);
    return path.reverse();
  }

  /** Shows a turn, and so the branch it is on. @param {Turn} turn */
  choose(turn) {
    for (const step of this.pathTo(turn.id)) this.choices.set(step.parent ?? ROOT, step.id);
  }

  /** A turn and everything that follows it on any branch. @param {Turn} turn @returns {Turn[]} */
  branch(turn) {
    const found = [turn];
    for (let n = 0; n < found.length; n++) found.push(...(this.children.get(found[n].id) ?? []));
    return found;
  }

  /** Takes a turn out with everything that follows it; returns what was taken. @param {Turn} turn */
  remove(turn) {
    const gone = this.branch(turn);
    for (const each of gone) {
      this.turns.delete(each.id);
      this.children.delete(each.id);
      this.choices.delete(each.id);
    }
    const siblings = this.variants(turn).filter((each) => each.id !== turn.id);
    this.children.set(turn.parent ?? ROOT, siblings);
    if (this.choices.get(turn.parent ?? ROOT) === turn.id) {
      this.choices.delete(turn.parent ?? ROOT);
      if (siblings.length) this.choices.set(turn.parent ?? ROOT, siblings[siblings.length - 1].id);
    }
    return gone;
  }

  /** What is shown, as it is kept: only choices that choose. @returns {[string, string][]} */
  keptChoices() {
    return [...this.choices].filter(([id, child]) => {
      const turn = this.turns.get(child);
      return turn && (turn.parent ?? ROOT) === id && (this.children.get(id)?.length ?? 0) > 1;
    });
  }
}

/** @param {Turn} a @param {Turn} b */
function byAge(a, b) {
  return a.created - b.created || (a.id < b.id ? -1 : 1);
}
