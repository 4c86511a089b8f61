/** Keeps the end of a growing page in sight, unless the reader looks elsewhere. */

const NEAR = 48;
const UP_KEYS = new Set(["ArrowUp", "PageUp", "Home"]);

/** Follows the end of a box that scrolls. */
export class Follower {
  /** @param {HTMLElement} box @param {HTMLElement} inner what grows @param {(isAtEnd: boolean) => void} onMove */
  constructor(box, inner, onMove) {
    this.box = box;
    this.onMove = onMove;
    this.follows = true;
    this.lastTop = 0;
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.release(), { passive: true });
    box.addEventListener("touchmove", () => this.release(), { passive: true });
    box.addEventListener("keydown", (event) => UP_KEYS.has(event.key) && this.release());
    // Between layout and paint: the end is in place before anyone sees it.
    const observer = new ResizeObserver(() => this.settle());
    observer.observe(inner);
    observer.observe(box);
  }

  /** Whether the end is in sight. */
  get isAtEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR;
  }

  #scrolled() {
    const { scrollTop } = this.box;
    // Upwards without anything having shrunk: somebody dragged the bar.
    if (scrollTop < this.lastTop - 2 && !this.isAtEnd) this.follows = false;
    else if (this.isAtEnd && scrollTop > this.lastTop) this.follows = true;
    this.lastTop = scrollTop;
    this.onMove(this.isAtEnd);
  }

  /** The reader looks elsewhere. */
  release() {
    this.follows = false;
  }

  /** Goes to the end and stays there. */
  toEnd() {
    this.follows = true;
    this.settle();
  }

  /** Puts the end in place where it is followed. */
  settle() {
    if (this.follows) {
      this.box.scrollTop = this.box.scrollHeight;
      this.lastTop = this.box.scrollTop;
    }
    this.onMove(this.isAtEnd);
  }
}
