// Keys of the page: `/` moves the focus to the search, `?` shows all keys.

const $ = (id) => document.getElementById(id);

/** Listen for the page's keys; they do nothing while text is typed or a dialog is open. */
export function listenForKeys() {
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, dialog");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { "/": () => $("filter").select(), "?": () => $("keys").showModal() }[event.key];
    if (!act || $("main").hidden) return;
    event.preventDefault();
    act();
  });
  $("keys-open").addEventListener("click", () => $("keys").showModal());
  $("keys-close").addEventListener("click", () => $("keys").close());
}
