"use strict";
// The theme: the system's, until the button says light or dark.

const THEMES = ["system", "light", "dark"];

function startTheme() {
  const button = byId("theme");
  let chosen = 0;
  button.addEventListener("click", () => {
    chosen = (chosen + 1) % THEMES.length;
    const theme = THEMES[chosen];
    button.textContent = "Theme: " + theme;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  });
}
