// What happened to a stream, drawn into its charts: resets, forks, timesteps that were not received.

/** The rows with a mark: [{at, text}]. */
export const markedRows = (rows) => rows.filter(({ mark }) => mark).map(({ at, mark }) => ({ at, text: mark }));

/** Draw a dashed line with a text at each mark that is in view; for uPlot's hook `draw`. */
export function drawMarks(chart, marks, { ink, font }) {
  const { ctx, bbox } = chart;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = font.replace(/(\d+)px/, (_, size) => `${size * ratio}px`);
  ctx.textAlign = "left"; // uPlot's labels leave it at "right", so that texts overlapped
  ctx.strokeStyle = ctx.fillStyle = ink;
  ctx.lineWidth = ratio;
  ctx.setLineDash([2 * ratio, 3 * ratio]);
  let free = -Infinity; // where the text before ends
  for (const { at, text } of marks) {
    const x = chart.valToPos(at, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const { width } = ctx.measureText(text);
    const start = Math.min(x - 2 * ratio, bbox.left + bbox.width - width);
    if (start < free) continue;
    ctx.fillText(text, start, bbox.top - 4 * ratio);
    free = start + width + 8 * ratio;
  }
  ctx.restore();
}
