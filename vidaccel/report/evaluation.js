"use strict";
// Tips of the plots, by pointer, touch and keys; the metric of a plot; which row and clip is looked at.
(() => {
  const get = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const [tip, row, clip, player, canvas] = ["tip", "row", "clip", "player", "canvas"].map(get);
  const NEAR = 30; // pixels from a mark at which a pointer means it
  let shown = null;

  function show(point) {
    if (point === shown) return;
    shown?.classList.remove("at");
    shown = point;
    tip.hidden = !point;
    if (!point) return;
    point.classList.add("at");
    tip.textContent = point.dataset.text;
    const mark = point.getBoundingClientRect();
    const left = (mark.left + mark.right - tip.offsetWidth) / 2;
    const above = mark.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, Math.min(document.documentElement.clientWidth - tip.offsetWidth - 8, left))}px`;
    tip.style.top = `${above >= 8 ? above : mark.bottom + 8}px`;
  }

  function nearest(points, event) {
    const away = (point) => {
      const mark = point.getBoundingClientRect();
      return Math.hypot((mark.left + mark.right) / 2 - event.clientX, (mark.top + mark.bottom) / 2 - event.clientY);
    };
    const best = points.reduce((one, other) => (away(other) < away(one) ? other : one));
    return away(best) < NEAR ? best : null;
  }

  function onKey(points, event) {
    const at = points.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
      End: points.length - 1 }[event.key];
    if (event.key === "Escape") show(null);
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    points[Math.max(0, Math.min(points.length - 1, to))].focus();
  }

  for (const plot of all(".plot svg")) {
    const points = all(".point", plot);
    const rest = () => { const kept = document.activeElement; show(points.includes(kept) ? kept : null); };
    if (!points.length) continue;
    for (const point of points) {
      const title = point.querySelector("title");
      point.dataset.text = title.textContent;
      point.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
      title.remove(); // or the browser shows a tip of its own
      point.tabIndex = point === points[0] ? 0 : -1;
      point.addEventListener("focus", () => {
        points.forEach((each) => { each.tabIndex = each === point ? 0 : -1; });
        show(point);
      });
      point.addEventListener("blur", () => show(null));
    }
    plot.addEventListener("pointermove", (event) => { const near = nearest(points, event); near ? show(near) : rest(); });
    plot.addEventListener("pointerleave", rest);
    plot.addEventListener("click", (event) => {
      const near = nearest(points, event);
      near ? near.focus({ preventScroll: true }) : document.activeElement?.blur();
    });
    plot.addEventListener("keydown", (event) => onKey(points, event));
  }
  addEventListener("scroll", () => show(null), { passive: true });

  for (const choice of all(".choice input")) {
    choice.addEventListener("change", () => {
      for (const plot of all(".plot", choice.closest(".plots"))) plot.hidden = plot.dataset.metric !== choice.value;
    });
    if (choice.checked) choice.dispatchEvent(new Event("change")); // browsers keep choices when a page is loaded again
  }

  const { videos, pairs } = JSON.parse(get("clips").textContent);

  function load() {
    const pair = (pairs[row.value] ?? [])[clip.selectedIndex];
    get("screens").hidden = !pair;
    get("no-clip").hidden = Boolean(pair);
    get("clip-label").hidden = !pair;
    if (!pair) return;
    const name = row.selectedOptions[0].textContent;
    for (const each of all("[data-method]", player)) each.textContent = name;
    get("fast").setAttribute("aria-label", `Video made with ${name}`);
    for (const each of [get("dense"), get("fast"), canvas]) Object.assign(each, { width: pair.width, height: pair.height });
    get("dense").src = videos[pair.videos[0]];
    get("fast").src = videos[pair.videos[1]];
    player.dataset.fps = pair.fps;
    player.dispatchEvent(new Event("change-clips"));
  }

  function look() {
    for (const each of all(".about")) each.hidden = each.id !== `about-${row.value}`;
    const kept = clip.selectedOptions[0]?.textContent;
    const cases = (pairs[row.value] ?? []).map((pair) => pair.case);
    clip.replaceChildren(...cases.map((text) => new Option(text)));
    clip.selectedIndex = cases.length ? Math.max(0, cases.indexOf(kept)) : -1;
    load();
  }

  row.addEventListener("change", look);
  clip.addEventListener("change", load);
  look();
})();
