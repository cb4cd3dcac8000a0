// Talks on the chat page as a person does, with the keyboard alone, and prints what is seen as JSON.
// node chat_page_walk.js ADDRESS CHROMIUM FOLDER KEY SETTINGS MESSAGE..., with playwright-core in NODE_PATH; screenshots are
// put into the folder. Each message is typed and answered, "STOP MESSAGE" is stopped, and "UNDO" presses that button.
"use strict";
const path = require("path");
const { chromium } = require("playwright-core");

async function answered(page) {
  await page.waitForFunction(() => !document.getElementById("send").hidden);
}

async function texts(page, role) {
  return page.locator(`#log .${role} > span:last-child`).allTextContents();
}

async function begin(page, address, key, settings) {
  await page.goto(address);
  if (key) {
    await page.locator("#key").waitFor({ state: "visible" });
    await page.locator("#key").fill(key);
    await page.locator("#key").press("Enter");
  } else {
    await page.locator("#settings > summary").press("Enter");
  }
  await page.waitForFunction(() => document.title !== "Chat");
  for (const [name, value] of Object.entries(settings)) await page.locator(`#${name}`).fill(value);
}

async function talk(page, messages) {
  await page.locator("#message").focus();
  for (const message of messages) {
    if (message === "UNDO") {
      await page.locator("#undo").press("Enter");
      continue;
    }
    await page.locator("#message").fill(""); // a message that was undone or refused is put back there
    const isStopped = message.startsWith("STOP ");
    await page.keyboard.type(message.replace("STOP ", ""));
    await page.keyboard.press("Enter");
    if (isStopped) {
      await page.waitForFunction(() => document.querySelector("#log li:last-child > span:last-child").textContent);
      await page.keyboard.press("Escape");
    }
    await answered(page);
  }
}

async function walk(page, address, folder, key, settings, messages) {
  const others = [], faults = [];
  page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("data:")) others.push(request.url()); });
  page.on("console", (message) => { if (message.type() === "error") faults.push(message.text()); });
  page.on("pageerror", (error) => faults.push(String(error)));
  await begin(page, address, key, settings);
  await page.screenshot({ path: path.join(folder, "settings.png") });
  await talk(page, messages);
  await page.screenshot({ path: path.join(folder, "light.png") });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator("#settings > summary").click();
  await page.screenshot({ path: path.join(folder, "dark.png") });
  await page.setViewportSize({ width: 360, height: 640 });
  await page.screenshot({ path: path.join(folder, "narrow.png") });
  const seen = {
    asked: await texts(page, "user"),
    answers: await texts(page, "assistant"),
    status: await page.locator("#status").innerText(),
    stored: await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]),
  };
  await page.locator("#reset").click();
  return { ...seen, afterReset: await page.locator("#log li").count(), focused: await page.evaluate(() => document.activeElement.id), others, faults };
}

(async () => {
  const [address, executablePath, folder, key, settings, ...messages] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage({ viewport: { width: 900, height: 700 } });
    page.setDefaultTimeout(60000);
    console.log(JSON.stringify(await walk(page, address, folder, key, JSON.parse(settings), messages)));
  } finally {
    await browser.close();
  }
})();
