// SPDX-License-Identifier: GPL-2.0-or-later
// Open pages of an Allure report, click what is named, and tell as JSON what is seen and what ran.
// Usage: node allure_pages.mjs CHROMIUM URL DIRECTORY [TEXT TO CLICK, OR #PAGE]...; a picture of each goes to DIRECTORY.
import { createRequire } from "node:module";

const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [executablePath, url, folder, ...clicks] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 1400, height: 2400 } });
const dialogs = [], errors = [], foreign = [];
page.on("dialog", (dialog) => { dialogs.push(dialog.message()); dialog.dismiss(); });
page.on("pageerror", (error) => errors.push(error.message));
await page.route((to) => !to.href.startsWith(new URL(url).origin) && !/^(data|blob):/.test(to.href), (route) => {
  const to = new URL(route.request().url()).host;
  if (to !== "www.googletagmanager.com") foreign.push(to);  // Allure's own: each of its pages asks for it
  return route.abort();
});
const look = async (name) => {
  await page.waitForLoadState("networkidle");
  await page.screenshot({ path: `${folder}/${name}.png` });
  return page.evaluate(() => ({
    text: document.body.innerText,
    scripts: document.scripts.length,
    handlers: [...document.querySelectorAll("*")].filter((one) => one.hasAttribute("onerror")).length,
  }));
};
await page.goto(url);
await page.getByText("Total").first().waitFor();
const seen = [await look("0")];
for (const [at, text] of clicks.entries()) {
  if (text.startsWith("#")) await page.goto(url + text);
  else await page.getByText(text, { exact: false }).first().click();
  seen.push(await look(`${at + 1}`));
}
await browser.close();
console.log(JSON.stringify({ seen, dialogs, errors, foreign }));
