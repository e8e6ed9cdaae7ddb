() => {
  // Gradio's image reports clicks only: a drag is left in difflmDrag, in pixels of the picture, for a hidden button.
  const CLICK = 8; // screen pixels: a shorter drag is a click
  let start = null;

  const line = document.createElement("div");
  line.style.cssText =
    "position: fixed; height: 2px; background: black; transform-origin: 0 50%; pointer-events: none; z-index: 1000";
  line.hidden = true;
  document.body.append(line);

  const picture = (event) => (event.target instanceof Element ? event.target.closest("#latent-map img") : null);

  // The picture keeps its proportions inside its frame.
  const inPicture = (image, x, y) => {
    const frame = image.getBoundingClientRect();
    const scale = Math.min(frame.width / image.naturalWidth, frame.height / image.naturalHeight);
    return [
      (x - frame.left - (frame.width - image.naturalWidth * scale) / 2) / scale,
      (y - frame.top - (frame.height - image.naturalHeight * scale) / 2) / scale,
    ];
  };

  const stop = () => {
    start = null;
    line.hidden = true;
  };

  document.addEventListener("dragstart", (event) => picture(event) && event.preventDefault());
  document.addEventListener("pointercancel", stop);
  document.addEventListener("pointerdown", (event) => {
    const image = picture(event);
    if (image && event.isPrimary && event.button === 0) start = { image, x: event.clientX, y: event.clientY };
  });
  document.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [across, down] = [event.clientX - start.x, event.clientY - start.y];
    line.hidden = Math.hypot(across, down) < CLICK;
    line.style.left = `${start.x}px`;
    line.style.top = `${start.y - 1}px`;
    line.style.width = `${Math.hypot(across, down)}px`;
    line.style.transform = `rotate(${Math.atan2(down, across)}rad)`;
  });
  document.addEventListener("pointerup", (event) => {
    if (!start) return;
    const { image, x, y } = start;
    stop();
    if (Math.hypot(event.clientX - x, event.clientY - y) < CLICK) return;
    // The click that browsers make of a press and a release on the same element would choose the end alone.
    const swallow = (click) => click.isTrusted && click.stopPropagation();
    document.addEventListener("click", swallow, { capture: true });
    setTimeout(() => document.removeEventListener("click", swallow, { capture: true }), 50);
    window.difflmDrag = [...inPicture(image, x, y), ...inPicture(image, event.clientX, event.clientY)];
    document.querySelector("#drag").click();
  });
}
