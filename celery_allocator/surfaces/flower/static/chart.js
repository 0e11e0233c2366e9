// Placements per minute, as bars: granted upwards, what ended as a line, what was lost in red below.
import { byId, clock, s, show } from "./dom.js";

const WIDTH = 640, HEIGHT = 190, LEFT = 34, BOTTOM = 24, TOP = 10;

function step(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || power;
}

export function chart(told) {
  show(byId("placements"), told, () => {
    const rows = told.minutes;
    const most = Math.max(4, ...rows.map((row) => Math.max(row.granted, row.ended)));
    const each = (WIDTH - LEFT) / rows.length;
    const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
    const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
    const text = `In the last hour ${sum("granted")} granted, ${sum("ended")} ended, ${sum("lost")} lost.`;
    const drawn = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text });
    for (let value = 0; value <= most; value += step(most)) {
      drawn.append(
        s("line", { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value), class: "alc-axis" }),
        s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, `${value}`));
    }
    rows.forEach((row, i) => {
      const bar = s("rect", { x: LEFT + i * each + 1, y: y(row.granted), width: Math.max(1, each - 2), height: HEIGHT - BOTTOM - y(row.granted), fill: "var(--alc-used)" });
      bar.append(s("title", {}, `${clock(row.at)}: ${row.granted} granted, ${row.ended} ended, ${row.lost} lost`));
      drawn.append(bar);
      if (row.lost) drawn.append(s("rect", { x: LEFT + i * each + 1, y: TOP, width: Math.max(1, each - 2), height: 5, fill: "var(--alc-over)" }));
      if (i % 15 === 0) drawn.append(s("text", { x: LEFT + i * each, y: HEIGHT - 6 }, clock(row.at).slice(0, 5)));
    });
    const line = rows.map((row, i) => `${LEFT + (i + 0.5) * each},${y(row.ended)}`).join(" ");
    drawn.append(s("polyline", { points: line, fill: "none", stroke: "var(--alc-foreign)", "stroke-width": 1.5 }));
    const note = document.createElement("p");
    note.className = "alc-muted";
    note.textContent = text + " Bars: granted. Line: ended." +
      (told.since !== null && told.since > rows[0].at ? ` Counted since ${clock(told.since)}.` : "");
    return [drawn, note];
  });
}
