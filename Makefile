# `make run` tries ringress out, `make test` runs the whole suite. Each target sees to what it needs
# beyond the Rust toolchain and a C compiler (scripts/need.sh COMMAND:PACKAGE ...).

CARGO ?= cargo
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 60
# Debian's servers are where only root's PATH leads.
SERVERS = PATH="$$PATH:/usr/sbin"
# Debian's nginx has what it needs for TCP in a module of its own.
NEED_NGINX_STREAM = $(SERVERS) nginx -V 2>&1 | grep -q -e '--with-stream ' || \
	ls /usr/lib/nginx/modules/ngx_stream_module.so >/dev/null 2>&1 || \
	scripts/need.sh ngx_stream_module.so:libnginx-mod-stream

.PHONY: help run build test audit fmt lint docs fuzz bench bench-peers

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run:  ## Build, then run the proxy in front of three demo backends (DEMO_ARGS="--listen ADDR")
	@scripts/need.sh
	$(CARGO) build --release --bin ringress
	@exec $(CARGO) run --quiet --release --bin ringress -- demo $(DEMO_ARGS)

build:  ## Build the release binary
	@scripts/need.sh
	$(CARGO) build --release --bin ringress

test:  ## Run the whole test suite
	@$(SERVERS) scripts/need.sh valgrind:valgrind dnsmasq:dnsmasq-base dig:bind9-dnsutils iperf3:iperf3 \
		openssl:openssl curl:curl nginx:nginx haproxy:haproxy testssl:testssl.sh \
		promtool:prometheus chromium:chromium chromedriver:chromium-driver
	@$(NEED_NGINX_STREAM)
	$(SERVERS) $(CARGO) test --workspace

audit:  ## Have testssl.sh and sslyze look at a listener with the default settings, about 5 minutes
	@$(SERVERS) scripts/need.sh openssl:openssl testssl:testssl.sh python3:python3
	$(CARGO) build --release --bin ringress
	@scripts/audit-tls.sh target/release/ringress

fmt:  ## Format the code
	@scripts/need.sh
	$(CARGO) fmt --all

lint:  ## Check the format and run clippy, warnings denied
	@scripts/need.sh
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs:  ## Build the API documentation, warnings denied
	@scripts/need.sh
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --workspace

bench:  ## Compare with the peers that are installed, about 4 minutes (BENCH_ARGS="--only echo-64")
	@scripts/need.sh
	$(CARGO) build --release --workspace
	@exec $(CARGO) run --quiet --release --package ringress-bench -- compare $(BENCH_ARGS)

bench-peers:  ## Install nginx and HAProxy for the comparison (Envoy: see bench/README.md)
	@scripts/need.sh nginx:nginx haproxy:haproxy
	@$(NEED_NGINX_STREAM)

# The pinned toolchain is a stable one; the fuzzer's instrumentation needs unstable flags of it.
fuzz:  ## Run each fuzz target for FUZZ_SECONDS (60)
	@scripts/need.sh c++:g++
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
		echo "installing cargo-fuzz"; $(CARGO) install --quiet --locked cargo-fuzz; }
	@set -e; for target in $$($(CARGO) fuzz list); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		mkdir -p fuzz/corpus/$$target fuzz/seeds/$$target; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target \
			-- -max_total_time=$(FUZZ_SECONDS); \
	done
