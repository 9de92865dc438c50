"use strict";
// Plays the two videos in step: the dense one leads, the fast one follows.
(() => {
  const get = (id) => document.getElementById(id);
  const [player, dense, fast, play, scrub, clock, toggle, difference, canvas] =
    ["player", "dense", "fast", "play", "scrub", "clock", "toggle", "difference", "canvas"].map(get);
  const videos = [dense, fast];
  const copies = new Map(videos.map((video) => [video, document.createElement("canvas")]));
  const copied = new Map(); // which frame each copy holds
  let fps; // of both, and of the copies the size: of the clips that are shown
  let playing = false;
  let broken = false;
  let wanted = null; // where to seek once the present seek has ended: Chromium can lose overlapping ones

  function measure() {
    fps = Number(player.dataset.fps);
    copies.forEach((each) => Object.assign(each, { width: canvas.width, height: canvas.height }));
    copied.clear();
  }

  const seeking = () => videos.some((video) => video.seeking);
  const frames = () => Math.max(1, Math.round((dense.duration || 0) * fps));
  const frameAt = (time) => Math.min(frames() - 1, Math.floor(time * fps + 0.01));
  const jump = (video, time) => { video.playbackRate = 1; video.currentTime = time; };

  async function setPlaying(on) {
    playing = on && !broken;
    play.textContent = playing ? "Pause" : "Play";
    if (!playing) {
      videos.forEach((video) => video.pause());
      // The middle of a frame: both decoders then agree on which one it is. Asked for even where they seem to agree:
      // a busy browser may have copied the frame after the one that it named.
      if (!broken) wanted = (frameAt(dense.currentTime) + 0.5) / fps;
      return;
    }
    try { await Promise.all(videos.map((video) => video.play())); } catch (error) {
      // A pause that arrives before the play has begun also ends here.
      if (playing && error.name === "NotAllowedError") setPlaying(false);
    }
  }

  function goTo(frame) {
    setPlaying(false);
    wanted = (Math.min(frames() - 1, Math.max(0, frame)) + 0.5) / fps;
  }

  function follow() {
    if (fast.ended) return;
    const drift = fast.currentTime - dense.currentTime;
    // A seek costs time itself, so that small drifts are steered away.
    if (Math.abs(drift) > 0.75 / fps) jump(fast, dense.currentTime);
    else fast.playbackRate = Math.abs(drift) < 0.1 / fps ? 1 : 1 - Math.max(-0.25, Math.min(0.25, drift * fps * 0.5));
  }

  function copy(video, time) {
    if (difference.hidden || video.readyState < 2) return;
    copies.get(video).getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    copied.set(video, frameAt(time));
    if (copied.get(dense) !== copied.get(fast)) return;
    const pen = canvas.getContext("2d");
    pen.globalCompositeOperation = "copy";
    pen.drawImage(copies.get(dense), 0, 0);
    pen.globalCompositeOperation = "difference";
    pen.drawImage(copies.get(fast), 0, 0);
    pen.globalCompositeOperation = "lighter";
    for (let doubling = 0; doubling < 3; doubling++) pen.drawImage(canvas, 0, 0);
  }

  function tick() {
    if (!seeking()) {
      if (wanted !== null) { videos.forEach((video) => jump(video, wanted)); wanted = null; }
      else if (playing && dense.ended) { videos.forEach((video) => jump(video, 0)); setPlaying(true); }
      else if (playing) follow();
    }
    const frame = frameAt(wanted ?? dense.currentTime);
    const text = `frame ${frame + 1} of ${frames()}`;
    if (clock.textContent !== text) {
      clock.textContent = text;
      scrub.max = String(frames() - 1);
      scrub.value = String(frame);
      scrub.setAttribute("aria-valuetext", text);
    }
    requestAnimationFrame(tick);
  }

  function fail() {
    broken = true;
    get("trouble").textContent = "This browser cannot decode the H.264 videos of this page.";
    setPlaying(false);
  }

  function onKey(event) {
    const box = player.getBoundingClientRect();
    const inView = box.bottom > 0 && box.top < innerHeight;
    const ours = player.contains(event.target) || (event.target === document.body && inView);
    if (!ours || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " " && event.target.tagName !== "BUTTON") setPlaying(!playing);
    else if (step) goTo(frameAt(wanted ?? dense.currentTime) + step);
    else return;
    event.preventDefault();
  }

  for (const video of videos) {
    video.controls = false;
    video.addEventListener("error", fail);
    if (video.error) fail();
    const onFrame = (_, frame) => { copy(video, frame.mediaTime); video.requestVideoFrameCallback(onFrame); };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(onFrame);
    else video.addEventListener("timeupdate", () => copy(video, video.currentTime));
    // The frame that a new clip rests on may have been handed over before there was anything to copy.
    video.addEventListener("seeked", () => { if (!playing) copy(video, video.currentTime); });
  }
  play.addEventListener("click", () => setPlaying(!playing));
  scrub.addEventListener("input", () => goTo(Number(scrub.value)));
  toggle.addEventListener("click", () => {
    difference.hidden = !difference.hidden;
    toggle.setAttribute("aria-pressed", String(!difference.hidden));
    videos.forEach((video) => copy(video, video.currentTime));
  });
  document.addEventListener("keydown", onKey);
  // Another script has given the videos other addresses.
  player.addEventListener("change-clips", () => {
    broken = false;
    get("trouble").textContent = "";
    wanted = null;
    measure();
    setPlaying(playing);
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  measure();
  get("controls").hidden = get("keys").hidden = false;
  requestAnimationFrame(tick);
  if ("autoplay" in player.dataset && !matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
})();
