/** Finds the turns near what is in sight and has them dressed, a few each frame. Cheaper than observing thousands. */

/** How far outside of what is in sight is near, and milliseconds of a frame that may go into dressing. */
const MARGIN = 1200;
const BUDGET = 6;

/** Watches a box of turns that scrolls. */
export class Dresser {
  /**
   * @param {HTMLElement} box what scrolls
   * @param {HTMLElement} host of groups of turns
   * @param {(el: HTMLElement) => void} dress
   */
  constructor(box, host, dress) {
    this.box = box;
    this.host = host;
    this.dress = dress;
    this.frame = 0;
    box.addEventListener("scroll", () => this.look(), { passive: true });
    new ResizeObserver(() => this.look()).observe(box);
  }

  /** Looks again in the next frame. */
  look() {
    this.frame ||= requestAnimationFrame(() => this.#dressNear());
  }

  #dressNear() {
    this.frame = 0;
    const { top, bottom } = this.box.getBoundingClientRect();
    const start = performance.now();
    for (const el of this.#bare(top - MARGIN, bottom + MARGIN, (top + bottom) / 2)) {
      const rect = el.getBoundingClientRect();
      const isSeen = rect.bottom > top && rect.top < bottom;
      // What is in sight cannot wait.
      if (!isSeen && performance.now() - start > BUDGET) {
        this.look();
        return;
      }
      this.dress(el);
    }
  }

  /**
   * Turns between two heights that are not dressed, those in the middle first.
   *
   * @param {number} from
   * @param {number} to
   * @param {number} middle
   * @returns {HTMLElement[]}
   */
  #bare(from, to, middle) {
    const { children: groups } = this.host;
    let low = 0;
    for (let high = groups.length; low < high;) {
      const at = (low + high) >> 1;
      if (groups[at].getBoundingClientRect().bottom < from) low = at + 1;
      else high = at;
    }
    const found = [];
    for (; low < groups.length && groups[low].getBoundingClientRect().top <= to; low++) {
      for (const child of groups[low].children) {
        const el = /** @type {HTMLElement} */ (child);
        if (el.dataset.dressed) continue;
        const { top, bottom } = el.getBoundingClientRect();
        if (bottom >= from && top <= to) found.push({ el, far: Math.abs(top - middle) });
      }
    }
    return found.sort((a, b) => a.far - b.far).map(({ el }) => el);
  }
}
