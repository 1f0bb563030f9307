// The key of a server that wants one: asked for when it refuses, and kept for this tab.

import { setKey } from "./api.js";

const at = (id) => document.getElementById(id);
let given = false; // since the last success, so that the next refusal means that it was wrong

export const keyAccepted = () => { given = false; };

// Resolves to whether a key was given.
export function askKey() {
  const dialog = at("key-dialog");
  at("key-wrong").hidden = !given;
  at("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      given = dialog.returnValue === "given";
      if (given) setKey(at("key").value.trim());
      resolve(given);
    }, { once: true });
  });
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("key-dialog").close("given");
});
at("key-cancel").addEventListener("click", () => at("key-dialog").close(""));
