# Thin: meson builds and tests; this names what people do. ARGS go to the program or the tests, e.g. make run ARGS="--cpus 4".
BUILD = build
KERNEL = cloud
APPEND = console=ttyS0

.PHONY: all build setup run check check-long check-asan check-tsan check-headers check-format format fuzz demo-debian bench install clean

all: build

$(BUILD)/build.ninja:
	@meson setup $(BUILD) >$(BUILD).log 2>&1 || { cat $(BUILD).log >&2; rm -f $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log

build: $(BUILD)/build.ninja
	@ninja --quiet -C $(BUILD)

setup:
	@tools/setup build run

run: setup build
	@tools/run-guest "$(BUILD)/ring3" "$(KERNEL)" --append "$(APPEND)" $(ARGS)

# A whole Debian on a disk image: built, booted, worked with by ssh on PORT of this host, switched off.
PORT ?= 2222
demo-debian:
	@tools/setup build run demo
	@$(MAKE) --no-print-directory build
	@PORT=$(PORT) tools/demo-debian "$(BUILD)/ring3" $(ARGS)

# The last line is the count: "N passed, N failed".
check:
	@tools/setup build run test
	@$(MAKE) --no-print-directory build
	@tools/run-tests $(BUILD) --no-suite long $(ARGS)

check-long:
	@tools/setup build run test long demo
	@$(MAKE) --no-print-directory build
	@RING3_LONG=1 tools/run-tests $(BUILD) --timeout-multiplier 20 $(ARGS)

check-asan:
	@tools/setup build run test
	@tools/run-tests --sanitize address,undefined $(BUILD)-asan --no-suite long --timeout-multiplier 5 $(ARGS)

check-tsan:
	@tools/setup build run test
	@tools/run-tests --sanitize thread $(BUILD)-tsan --no-suite long --timeout-multiplier 10 $(ARGS)

check-headers: build
	@tools/check-headers $(BUILD)

check-format:
	@tools/check-format

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

# SECONDS for each target; the short runs are in `make check`.
SECONDS = 60
fuzz:
	@tools/setup build run test
	@tools/fuzz $(SECONDS) $(ARGS)

bench:
	@tools/setup build run bench
	@$(MAKE) --no-print-directory build
	@bench/run $(ARGS)
	@[ "$(ARGS)" ] || bench/debian --vmm $(BUILD)/ring3

install: build
	@meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-fuzz
