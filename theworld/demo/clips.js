// One button plays or pauses all clips of its section. Where the visitor's system asks for less motion, clips begin paused.
(() => {
  const reduced = window.matchMedia("(prefers-reduced-motion: reduce)");
  const buttonOf = (clip) => clip.closest("section, figure.tw-seen")?.querySelector(".tw-pause");
  const show = (button, playing) => { if (button) button.textContent = playing ? "Pause" : "Play"; };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".tw-pause");
    if (!button) return;
    const play = button.textContent.trim() === "Play";
    for (const clip of button.closest("section, figure.tw-seen").querySelectorAll("video")) {
      clip.dataset.wanted = play;
      if (play) clip.play(); else clip.pause();
    }
    show(button, play);
  });
  document.addEventListener("play", (event) => {
    const clip = event.target;
    if (!reduced.matches || clip.dataset?.wanted || !clip.closest(".tw-clips, .tw-seen")) return;
    clip.pause();
    show(buttonOf(clip), false);
  }, true);
})();
