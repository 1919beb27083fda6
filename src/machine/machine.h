/*
 * A machine: vCPUs, memory, clock, chips; building, running, pausing, saving it.
 *
 * Threads: one per vCPU (vcpu_loop.c), one for the event loop (timers, console and other back ends), and the caller's.
 * Locks, in the order in which they may be taken: run state (lifecycle.c) -> device lock (machine_lock) -> a local
 * APIC's own lock.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/disk/disk.h"
#include "debug/trace.h"
#include "devices/bus.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/system.h"

#define MACHINE_CPUS_MAX  16
#define MACHINE_DISKS_MAX 8
#define MACHINE_NETS_MAX  8
#define MACHINE_PORTS_MAX 8

struct chardev;
struct engine;
struct event_loop;
struct lapic_group;
struct net_options;
struct perf_map;
struct pc;
struct state;

/* A virtio disk. */
struct machine_disk {
	struct disk_options image; /* opened and closed by the machine */
	const char *serial;        /* up to 20 characters; NULL: none */
	unsigned queues;           /* 0: as many as seem good */
	bool transitional;         /* for drivers from before virtio 1.0, too */
};

/* A port of the virtio console. */
struct machine_port {
	struct chardev *chardev; /* borrowed */
	const char *name;        /* of a channel (/dev/virtio-ports/NAME in a guest); NULL: a console */
};

/* The options tree: what a machine is made of. Every front end (ring3's own commands, later others) fills this. Strings
 * are borrowed. */
struct machine_options {
	const char *engine;       /* "auto" */
	unsigned translate_after; /* for the translator: entries of a block; 0: its own choice */
	const char *cpu;          /* "host" */
	unsigned cpus;
	uint64_t memory; /* bytes */
	const char *kernel;
	const char *initrd; /* several, with commas, for Multiboot modules */
	const char *append;
	bool boot_from_disk;     /* kernel and initrd are in the first disk; `append` is added to what it says */
	struct chardev *console; /* COM1; NULL: nothing is connected. Borrowed. */
	struct machine_disk disks[MACHINE_DISKS_MAX];
	unsigned disk_count;
	const struct net_options *nets[MACHINE_NETS_MAX];
	unsigned net_count;
	struct machine_port ports[MACHINE_PORTS_MAX]; /* none: no virtio console */
	unsigned port_count;
	bool no_reboot;  /* a guest reset ends the run like a power-off */
	bool debug_exit; /* isa-debug-exit at F4h */
	uint32_t trace_mask;
	FILE *trace_file;
	bool stopped;              /* --stop: wait for the debugger */
	struct perf_map *perf_map; /* --perf-map: translated blocks are noted there; NULL: none. Borrowed. */
	uint64_t code_cache;       /* bytes for decoded and translated code, all processors together; 0: a default */
	bool lockstep;             /* --lockstep: translated code is checked; one processor */
	bool compare_taken;        /* --compare-taken: translations taken from another processor are checked */
	bool stats;                /* --stats: what costs time to count is counted */
};

/* Why a machine stopped. */
enum machine_end {
	MACHINE_RUNNING,
	MACHINE_POWER_OFF,
	MACHINE_RESET,      /* with no_reboot */
	MACHINE_CRASHED,    /* triple fault: exit status 3 */
	MACHINE_DEBUG_EXIT, /* isa-debug-exit; the value is in debug_exit_status */
	MACHINE_QUIT,       /* the user left */
	MACHINE_FAILED,     /* ring3 itself failed: exit status 1 */
};

struct machine {
	struct machine_options options;
	struct memory memory;
	struct bus bus;
	struct clock *clock;
	struct event_loop *loop;
	struct trace trace;
	struct cpu_model model;
	const struct engine *engine;
	struct lapic_group *lapics;
	struct pc *pc;
	struct vcpu **vcpu; /* options.cpus of them */
	pthread_mutex_t device_lock;
	void *lifecycle; /* lifecycle.c's own */
};

void machine_lock(struct machine *machine);
void machine_unlock(struct machine *machine);

/* Builds everything and loads the kernel; nothing runs yet. 0, or -errno after one logged line. */
int machine_create(struct machine **machine, const struct machine_options *options);
void machine_destroy(struct machine *machine);

/* Runs until it ends; the caller's thread becomes the event loop. */
enum machine_end machine_run(struct machine *machine, int *debug_exit_status);
/* Asks for an end. Any thread, also from chips with the device lock held; async-signal-safe. The first reason wins. */
void machine_end(struct machine *machine, enum machine_end reason, int status);
/* Asks for a reset of the whole machine (port 92h, CF9h, keyboard controller, triple fault ...). Any thread. */
void machine_request_reset(struct machine *machine);

/*
 * Stops all vCPUs at an instruction boundary and the clock, and returns when they stand; counted. Not from a vCPU
 * thread, not with the device lock.
 */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);

/*
 * For the debugger: called on the vCPU's thread when it stops with EXIT_DEBUG or EXIT_EXCEPTION. The stop holds one
 * pause, which the debugger gives back by one machine_resume(); the other vCPUs are being stopped, and machine_pause()
 * (plus its own machine_resume()) waits until all stand. Not called for machine_step()'s own stop.
 */
void machine_set_debugger(struct machine *machine, void (*stopped)(void *owner, struct vcpu *vcpu), void *owner);
/* A paused machine: one vCPU executes one instruction, the others stand still. */
void machine_step(struct machine *machine, struct vcpu *vcpu);

/*
 * A paused machine: all processors go on with another engine. 0 or -errno, then the machine is ended (MACHINE_FAILED):
 * the caller only resumes it.
 */
int machine_switch_engine(struct machine *machine, const struct engine *engine);

/* The whole state, RAM included, of a machine that is paused or has not run yet (snapshot.c comes later; tests use it now). */
void machine_state(struct machine *machine, struct state *state);

/* Counters, times and memory use (machine_stats.c), while it runs or when it has ended. */
void machine_print_stats(const struct machine *machine, FILE *file);

/* vcpu_loop.c: the dispatcher, one thread per vCPU. */
int vcpu_thread_start(struct vcpu *vcpu);
void vcpu_thread_join(struct vcpu *vcpu);
