FROM node:20-bookworm-slim
RUN npm install --global --no-audit --no-fund omniboard@2.16.1 && npm cache clean --force
USER node
ENV PORT=9000
EXPOSE 9000
CMD ["omniboard"]
