"use strict";
// Keys for the alarm that is marked: the first one, or where j and k have gone.
(() => {
  const alarms = [...document.querySelectorAll(".alarm")];
  let place = 0;
  const mark = () => alarms.forEach((alarm, k) => alarm.classList.toggle("current", k === place));
  const go = (step) => {
    place = Math.min(Math.max(place + step, 0), alarms.length - 1);
    mark();
    alarms[place].focus({ preventScroll: true });
    alarms[place].scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLSelectElement;
    if (!alarms.length || typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === "j") return go(1);
    if (event.key === "k") return go(-1);
    const button = alarms[place].querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
    if (button) button.click();
  });
  // One answer for each alarm, however often it is clicked.
  document.addEventListener("submit", (event) => {
    if (document.body.classList.contains("sent")) event.preventDefault();
    document.body.classList.add("sent");
  });
  window.addEventListener("pageshow", () => document.body.classList.remove("sent"));
  mark();
})();
