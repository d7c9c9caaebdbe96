// The numbers under the pointer: every chart carries its points as data.
for (const chart of document.querySelectorAll("[data-chart]")) {
  const data = JSON.parse(chart.dataset.chart);
  const svg = chart.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const tip = chart.appendChild(document.createElement("div"));
  const [low, high, start, end] = data.x;
  tip.className = "tip";
  tip.hidden = true;

  const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const u = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const x = low + ((u - start) / (end - start)) * (high - low);
    const found = data.lines.map(([label, colour, points]) => [label, colour, nearest(points, x)]);
    const step = found.reduce((best, f) => (Math.abs(f[2][0] - x) < Math.abs(best - x) ? f[2][0] : best), found[0][2][0]);
    const at = start + ((step - low) / (high - low)) * (end - start);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(`step ${step.toLocaleString("en")}`);
    for (const [label, colour, point] of found) {
      const line = tip.appendChild(document.createElement("div"));
      const key = line.appendChild(document.createElement("i"));
      key.className = `key c${colour % 8}`;
      line.append(found.length > 1 ? `${label}: ${point[1]}` : `${point[1]}`);
    }
    tip.hidden = false;
    const shift = event.clientX - box.left > box.width / 2 ? -tip.offsetWidth - 14 : 14;
    tip.style.left = `${event.clientX - chart.getBoundingClientRect().left + shift}px`;
    tip.style.top = `${event.clientY - chart.getBoundingClientRect().top + 10}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
}
