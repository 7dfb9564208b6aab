// What a mouse, a finger or two fingers do on the canvas: hover, pick, drag a zoomed picture, pinch, Ctrl + wheel.

const SLACK = 5; // CSS pixels a press may slip and still be a click

/**
 * @param {HTMLCanvasElement} canvas
 * @param {import("./canvas.js").Stage} stage
 * @param {{hover: (index: number, point: {x: number, y: number}) => void, pick: (index: number) => void}} tell
 */
export function watchPointers(canvas, stage, tell) {
  const pressed = new Map(); // pointer id -> last point
  let slipped = 0;

  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (pressed.size === 0) slipped = 0;
    pressed.set(event.pointerId, point(event));
    canvas.setPointerCapture(event.pointerId);
  });

  canvas.addEventListener("pointermove", (event) => {
    const now = point(event);
    const before = pressed.get(event.pointerId);
    if (!before) {
      tell.hover(stage.at(now), now);
      return;
    }
    slipped += Math.hypot(now.x - before.x, now.y - before.y);
    if (pressed.size === 2) {
      const other = [...pressed].find(([id]) => id !== event.pointerId)[1];
      const apart = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
      stage.zoom(apart(now) / apart(before), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    }
    if (slipped > SLACK) {
      stage.pan((now.x - before.x) / pressed.size, (now.y - before.y) / pressed.size);
      tell.hover(-1, now);
    }
    pressed.set(event.pointerId, now);
  });

  canvas.addEventListener("pointerup", (event) => {
    if (pressed.delete(event.pointerId) && slipped <= SLACK) tell.pick(stage.at(point(event)));
  });
  canvas.addEventListener("pointercancel", (event) => pressed.delete(event.pointerId));
  canvas.addEventListener("pointerleave", (event) => tell.hover(-1, point(event)));

  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the plain wheel scrolls the page
      event.preventDefault();
      stage.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 4 : 150)), point(event));
    },
    { passive: false },
  );
}
