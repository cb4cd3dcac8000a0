// Looks at the newest run in Omniboard as a person does, and prints what is seen as JSON.
// node omniboard_walk.js ADDRESS CHROMIUM FOLDER ARTIFACT, with playwright-core in NODE_PATH; screenshots and the
// artifact are put into the folder.
"use strict";
const path = require("path");
const { chromium } = require("playwright-core");

async function walk(page, address, folder, artifact) {
  await page.goto(address);
  await page.getByText("►").first().waitFor();
  await page.screenshot({ path: path.join(folder, "list.png") });
  const listed = await page.locator("body").innerText();

  await page.getByText("►").first().click();
  await page.locator(".legendtext").first().waitFor();
  await page.screenshot({ path: path.join(folder, "curve.png") });
  const points = await page.evaluate(() => Object.fromEntries([...document.querySelectorAll(".legend .traces")].map((entry) => {
    const color = entry.querySelector(".legendlines path").style.stroke;
    const lines = [...document.querySelectorAll(".scatterlayer path.js-line")].filter((line) => line.style.stroke === color);
    const count = (line) => line.getAttribute("d").split(/[ML]/).length - 1;
    return [entry.querySelector(".legendtext").textContent, lines.reduce((sum, line) => sum + count(line), 0)];
  })));

  await page.getByText("Artifacts", { exact: true }).click();
  await page.locator(`[id^="accordion__title"]`, { hasText: artifact }).first().click();
  const coming = page.waitForEvent("download");
  await page.locator(`[test-attr^="down-btn-${artifact}"]`).click();
  await (await coming).saveAs(path.join(folder, artifact));
  await page.screenshot({ path: path.join(folder, "artifact.png") });
  return { listed, points };
}

(async () => {
  const [address, executablePath, folder, artifact] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
    page.setDefaultTimeout(90000);
    console.log(JSON.stringify(await walk(page, address, folder, artifact)));
  } finally {
    await browser.close();
  }
})();
