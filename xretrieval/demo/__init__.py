"""The polyglot corpus (synthetic, n-way parallel speech) and the one-command demo."""
