/** Keep the map fluid on a slow machine: while it moves, draw fewer cells if frames take long; all of them when it rests. */
import type { Camera } from "./camera";
import { STRIDES } from "./painter";

const SLOW_MS = 30; // a frame that takes longer is followed by one of fewer cells
const QUICK_MS = 18;
const REST_MS = 140;

export class Pace {
  private level = 0;
  private before = -Infinity;
  private average = 0;
  private camera: Camera | null = null;
  private timer = 0;

  /** The level of thinning for a frame at `now`. */
  levelAt(now: number, camera: Camera, moves: boolean): number {
    const gap = now - this.before;
    const isMoving = (moves || camera !== this.camera) && gap < REST_MS * 3;
    this.before = now;
    this.camera = camera;
    if (!isMoving) {
      this.average = 0;
      return 0;
    }
    this.average = this.average ? 0.6 * this.average + 0.4 * gap : gap;
    if (this.average > SLOW_MS && this.level < STRIDES.length - 1) this.step(1);
    else if (this.average < QUICK_MS && this.level > 0) this.step(-1);
    return this.level;
  }

  /** Draw once more, everything, unless the map moves on meanwhile. */
  whenStill(draw: () => void): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.before = -Infinity;
      draw();
    }, REST_MS);
  }

  private step(by: number): void {
    this.level += by;
    this.average = 0;
  }
}
