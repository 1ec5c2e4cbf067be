"""Answer many requests together by continuous batching."""
