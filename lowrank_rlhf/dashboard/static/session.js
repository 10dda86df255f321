// Shows a link to the login while the server refuses this page's session: it has expired, or the server was restarted.
// Everything typed stays on the page; the link opens another tab, after which this page works again.
(() => {
  const ask = window.fetch;
  const texts = {
    en: ['This session has ended. What you typed is kept on this page. ', 'Log in again'],
    zh: ['登录已失效。您输入的内容仍保留在本页。', '重新登录'],
  };
  let shown = null;
  function end() {
    if (shown || !document.body) return;
    const [words, link] = texts[document.documentElement.lang.startsWith('zh') ? 'zh' : 'en'];
    shown = document.createElement('div');
    shown.id = 'session-ended';
    shown.setAttribute('role', 'alert');
    const login = Object.assign(document.createElement('a'), { href: `/login${location.search}`, target: '_blank' });
    login.textContent = link;
    shown.append(words, login);
    document.body.prepend(shown);
  }
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (new URL(answer.url || location, location).origin !== location.origin) return answer;
    if (answer.status === 401) end();
    else if (shown && answer.ok) { shown.remove(); shown = null; }
    return answer;
  };
})();
