/*
 * The gdb stub with a machine that is only pretended: memory, registers, and counts of what was asked of it. The
 * packets as in the GDB manual, then random ones.
 *
 * "test_gdb serve unix:PATH" serves the pretended machine, to be looked at with a real gdb.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "debug/dump.h"
#include "debug/gdb_session.h"
#include "debug/gdbstub.h"
#include "devices/lapic.h"
#include "engines/engine.h"
#include "host/event_loop.h"

#define CPUS        2
#define MEMORY_BASE 0xffff800000000000ull
#define MEMORY_SIZE 0x4000u

struct fake {
	struct machine machine; /* first: the fakes below find the rest from it */
	_Atomic int pauses;
	unsigned resets, flushes, changes, steps;
	int ended; /* enum machine_end */
	void (*stopped)(void *owner, struct vcpu *vcpu);
	void *stopped_owner;
	uint8_t memory[MEMORY_SIZE];
	struct vcpu *vcpu[CPUS];
};

static struct fake *fake_of(struct machine *machine)
{
	return (struct fake *)machine;
}

void machine_pause(struct machine *machine)
{
	fake_of(machine)->pauses++;
}

void machine_resume(struct machine *machine)
{
	assert_true(fake_of(machine)->pauses > 0);
	fake_of(machine)->pauses--;
}

void machine_step(struct machine *machine, struct vcpu *vcpu)
{
	assert_true(fake_of(machine)->pauses > 0);
	assert_true(vcpu->debug.skip_breakpoint_once);
	fake_of(machine)->steps++;
	vcpu->state.rip++;
}

void machine_set_debugger(struct machine *machine, void (*stopped)(void *owner, struct vcpu *vcpu), void *owner)
{
	fake_of(machine)->stopped = stopped;
	fake_of(machine)->stopped_owner = owner;
}

void machine_end(struct machine *machine, enum machine_end reason, int status)
{
	fake_of(machine)->ended = reason;
	if (machine->loop)
		event_loop_stop(machine->loop);
}

void machine_request_reset(struct machine *machine)
{
	fake_of(machine)->resets++;
}

static uint8_t *linear(struct vcpu *vcpu, uint64_t address, size_t length)
{
	uint64_t offset = address - MEMORY_BASE;

	if (offset >= MEMORY_SIZE || length > MEMORY_SIZE - offset)
		return NULL;
	return fake_of(vcpu->machine)->memory + offset;
}

bool mmu_debug_read(struct vcpu *vcpu, uint64_t address, void *buffer, size_t length)
{
	uint8_t *bytes = linear(vcpu, address, length);

	if (bytes)
		memcpy(buffer, bytes, length);
	return bytes != NULL;
}

bool mmu_debug_write(struct vcpu *vcpu, uint64_t address, const void *buffer, size_t length)
{
	uint8_t *bytes = linear(vcpu, address, length);

	if (bytes)
		memcpy(bytes, buffer, length);
	return bytes != NULL;
}

int memory_read(const struct memory *memory, uint64_t physical, void *buffer, uint64_t length)
{
	if (physical >= 0x10000)
		return -14;
	memset(buffer, 0x5a, length);
	return 0;
}

void mmu_update_watches(struct vcpu *vcpu) {}

void mmu_update_view(struct vcpu *vcpu) {}

void vcpu_kick(struct vcpu *vcpu, uint32_t attention) {}

void dump_vcpu(struct vcpu *vcpu, FILE *file)
{
	fprintf(file, "dump of cpu %u\n", vcpu->index);
}

static void state_changed(struct vcpu *vcpu)
{
	fake_of(vcpu->machine)->changes++;
}

static void flush_code(struct vcpu *vcpu)
{
	fake_of(vcpu->machine)->flushes++;
}

static const struct engine fake_engine = {.name = "fake", .state_changed = state_changed, .flush_code = flush_code};

static struct fake *fake_create(void)
{
	struct fake *fake = calloc(1, sizeof(*fake));

	fake->machine.options.cpus = CPUS;
	fake->machine.vcpu = fake->vcpu;
	for (unsigned i = 0; i < CPUS; i++) {
		struct vcpu *vcpu = aligned_alloc(64, (sizeof(*vcpu) + 63) / 64 * 64);
		memset(vcpu, 0, sizeof(*vcpu));
		fake->vcpu[i] = vcpu;
		vcpu->index = i;
		vcpu->machine = &fake->machine;
		vcpu->engine = &fake_engine;
		vcpu->state.efer = EFER_LMA | EFER_LME;
		vcpu->state.cr0 = CR0_PE | CR0_PG;
		vcpu->state.segment[SEG_CS].access = SEG_L | SEG_P | SEG_S | SEG_CODE;
		vcpu->state.segment[SEG_CS].selector = 0x10;
		vcpu->state.rflags = 2;
		vcpu->state.rip = MEMORY_BASE + 0x1000 + 0x100 * i;
		for (unsigned r = 0; r < GPR_COUNT; r++)
			vcpu->state.gpr[r] = 0x1111111111111111ull * r + i;
	}
	for (unsigned i = 0; i < MEMORY_SIZE; i++)
		fake->memory[i] = (uint8_t)(i * 7);
	return fake;
}

static void fake_destroy(struct fake *fake)
{
	for (unsigned i = 0; i < CPUS; i++)
		free(fake->vcpu[i]);
	free(fake);
}

/* Puts a packet around the text. */
static size_t frame(char *packet, const char *text, size_t length)
{
	uint8_t sum = 0;
	size_t used = 0;

	packet[used++] = '$';
	for (size_t i = 0; i < length; i++) {
		char c = text[i];
		if (c == '$' || c == '#' || c == '}') {
			packet[used++] = '}';
			sum += '}';
			c ^= 0x20;
		}
		packet[used++] = c;
		sum += (uint8_t)c;
	}
	return used + (size_t)sprintf(packet + used, "#%02x", sum);
}

static char answer_text[8 * GDB_PACKET_MAX];

/* Takes all output, checks its framing, and returns the contents of the packets, joined by newlines, without
 * acknowledgements. */
static const char *take(struct gdb_session *session)
{
	size_t used = 0;
	const char *p = session->output, *end = p + session->output_length;

	while (p < end) {
		if (*p == '+' || *p == '-') {
			p++;
			continue;
		}
		assert_int_equal(*p++, '$');
		uint8_t sum = 0;
		if (used)
			answer_text[used++] = '\n';
		while (p < end && *p != '#') {
			assert_true(*p != '$');
			sum += (uint8_t)*p;
			char c = *p++;
			if (c == '}') {
				sum += (uint8_t)*p;
				c = *p++ ^ 0x20;
			}
			answer_text[used++] = c;
		}
		assert_true(end - p >= 3);
		char digits[3] = {p[1], p[2], 0};
		assert_int_equal(strtoul(digits, NULL, 16), sum);
		p += 3;
	}
	answer_text[used] = 0;
	session->output_length = 0;
	return answer_text;
}

static const char *ask_bytes(struct gdb_session *session, const char *text, size_t length)
{
	char *packet = malloc(2 * length + 8);
	size_t framed = frame(packet, text, length);

	gdb_session_input(session, packet, framed);
	free(packet);
	return take(session);
}

static const char *ask(struct gdb_session *session, const char *text)
{
	return ask_bytes(session, text, strlen(text));
}

struct rig {
	struct fake *fake;
	struct gdb_session *session;
};

static void rig_create(struct rig *rig)
{
	rig->fake = fake_create();
	rig->session = gdb_session_create(&rig->fake->machine, NULL);
	assert_int_equal(rig->fake->pauses, 1);
}

static void rig_destroy(struct rig *rig)
{
	gdb_session_destroy(rig->session);
	assert_int_equal(rig->fake->pauses, 0);
	fake_destroy(rig->fake);
}

static void test_framing(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	gdb_session_input(session, "+$?#3f", 6);
	assert_memory_equal(session->output, "+$T05thread:1;#", 15);
	session->output_length = 0;
	gdb_session_input(session, "$?#3e", 5); /* wrong sum */
	assert_int_equal(session->output_length, 1);
	assert_int_equal(session->output[0], '-');
	session->output_length = 0;
	gdb_session_input(session, "$?#zz", 5);
	assert_int_equal(session->output[0], '-');
	session->output_length = 0;
	gdb_session_input(session, "noise\3$qqq$?#3f", 15); /* broken off and begun again */
	assert_memory_equal(session->output, "+$T05", 5);
	session->output_length = 0;
	assert_string_equal(ask(session, "QStartNoAckMode"), "OK");
	gdb_session_input(session, "$?#3f", 5);
	assert_int_equal(session->output[0], '$');
	session->output_length = 0;
	assert_string_equal(ask(session, "vMustReplyEmpty"), "");
	assert_string_equal(ask(session, ""), "");
	assert_string_equal(ask(session, "!"), "");
	/* Longer than a packet may be. */
	char *longest = malloc(3 * GDB_PACKET_MAX);
	memset(longest, 'm', 3 * GDB_PACKET_MAX);
	assert_string_equal(ask_bytes(session, longest, 3 * GDB_PACKET_MAX), "");
	free(longest);
	assert_true(strstr(ask(session, "qSupported:multiprocess+;swbreak+"), "PacketSize=4000;") == answer_text);
	rig_destroy(&rig);
}

static void test_registers(void **unused)
{
	struct rig rig;
	char packet[256];

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	struct cpu_state *state = &rig.fake->vcpu[0]->state, *other = &rig.fake->vcpu[1]->state;
	assert_string_equal(ask(session, "p1"), "3333333333333333"); /* rbx is gdb's second, x86's fourth */
	assert_string_equal(ask(session, "p10"), "001000000080ffff");
	assert_string_equal(ask(session, "p11"), "02000000");
	assert_string_equal(ask(session, "p12"), "10000000");
	assert_string_equal(ask(session, "pfff"), "E16");
	assert_string_equal(ask(session, "p"), "E16");
	assert_string_equal(ask(session, "P0=efcdab8967452301"), "OK");
	assert_true(state->gpr[RAX] == 0x0123456789abcdef);
	assert_int_equal(rig.fake->changes, 1);
	assert_string_equal(ask(session, "P0=efcdab89674523"), "E16");
	assert_string_equal(ask(session, "P0"), "E16");
	assert_string_equal(ask(session, "P10=0000000000000080"), "E16"); /* RIP not canonical */
	assert_string_equal(ask(session, "P11=ffffffff"), "OK");
	assert_true((state->rflags & 0xffffffff) == 0x3d7fd7);
	/* The other thread's. */
	assert_string_equal(ask(session, "Hg2"), "OK");
	assert_string_equal(ask(session, "p0"), "0100000000000000");
	assert_string_equal(ask(session, "Hg3"), "E16");
	assert_string_equal(ask(session, "Hg0"), "OK");
	/* x87: the tag word is made from the abridged one. */
	state->x87.fsw = 6 << 11;
	state->x87.ftw = 0xc0;
	state->x87.st[0][7] = 0x80;
	state->x87.st[0][8] = 0xff;
	state->x87.st[0][9] = 0x3f;
	unsigned ftag = 0;
	for (unsigned i = 0; i < gdb_register_count(); i++)
		if (gdb_register_size(i) == 10)
			ftag = i + 3; /* after st7: fctrl, fstat, ftag */
	snprintf(packet, sizeof(packet), "p%x", ftag);
	assert_string_equal(ask(session, packet), "ff4f0000");
	/* g and G: round trip into the other CPU. */
	for (unsigned i = 0; i < 16 * 64; i++)
		state->vector.zmm[i / 64][i % 64] = (uint8_t)(i * 3);
	size_t all = 0;
	for (unsigned i = 0; i < gdb_register_count(); i++)
		all += gdb_register_size(i);
	const char *g = ask(session, "g");
	assert_int_equal(strlen(g), 2 * all);
	char *whole = malloc(2 * all + 2);
	sprintf(whole, "G%s", g);
	assert_string_equal(ask(session, "Hg2"), "OK");
	assert_string_equal(ask(session, whole), "OK");
	assert_memory_equal(other->gpr, state->gpr, sizeof(state->gpr));
	assert_memory_equal(other->vector.zmm[3], state->vector.zmm[3], 32);
	whole[2 * all - 1] = 0;
	assert_string_equal(ask(session, whole), "E16");
	free(whole);
	rig_destroy(&rig);
}

static void test_memory(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	assert_string_equal(ask(session, "mffff800000000001,3"), "070e15");
	assert_string_equal(ask(session, "mffff800000003ffe,8"), "f2f9"); /* as far as there is memory */
	assert_string_equal(ask(session, "m0,8"), "E0e");
	assert_string_equal(ask(session, "mffffffffffffffff,8"), "E0e");
	assert_string_equal(ask(session, "m11112222333344445,8"), "E16");
	assert_string_equal(ask(session, "mffff800000000000"), "E16");
	assert_int_equal(strlen(ask(session, "mffff800000000000,ffffffffffffffff")), GDB_PACKET_MAX);
	assert_string_equal(ask(session, "Mffff800000000ffe,4:01020304"), "OK");
	assert_memory_equal(rig.fake->memory + 0xffe, "\1\2\3\4", 4);
	assert_int_equal(rig.fake->flushes, CPUS);
	assert_string_equal(ask(session, "Mffff800000000ffe,4:010203"), "E16");
	assert_string_equal(ask(session, "Mffff800000000ffe,1:0x"), "E16");
	assert_string_equal(ask(session, "Mffff800000003fff,2:0102"), "E0e");
	assert_int_equal(rig.fake->memory[0x3fff], 0xf9);
	assert_string_equal(ask_bytes(session, "Xffff800000000010,5:#$}\0*", 24 + 1), "OK");
	assert_memory_equal(rig.fake->memory + 0x10, "#$}\0*", 5);
	assert_string_equal(ask(session, "Xffff800000000010,0:"), "OK");
	assert_string_equal(ask(session, "Xffff800000000010,6:abc"), "E16");
	rig_destroy(&rig);
}

static void test_description(void **unused)
{
	struct rig rig;
	char *whole = calloc(1, 1 << 20), packet[100];
	size_t used = 0;

	rig_create(&rig);
	for (;;) {
		snprintf(packet, sizeof(packet), "qXfer:features:read:target.xml:%zx,3f1", used);
		const char *part = ask(rig.session, packet);
		assert_true(*part == 'm' || *part == 'l');
		strcpy(whole + used, part + 1);
		used += strlen(part + 1);
		if (*part == 'l')
			break;
	}
	size_t length;
	char *direct = gdb_target_description(&length);
	assert_string_equal(whole, direct);
	free(direct);
	unsigned count = 0;
	for (const char *p = whole; (p = strstr(p, "<reg ")); p++)
		count++;
	assert_int_equal(count, gdb_register_count());
	assert_string_equal(ask(rig.session, "qXfer:features:read:other.xml:0,100"), "E00");
	assert_string_equal(ask(rig.session, "qXfer:features:read:target.xml:fffffff,100"), "E16");
	assert_string_equal(ask(rig.session, "qXfer:features:read:target.xml:0"), "E16");
	free(whole);
	rig_destroy(&rig);
}

static void test_threads(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	assert_string_equal(ask(session, "qfThreadInfo"), "m1,2");
	assert_string_equal(ask(session, "qsThreadInfo"), "l");
	assert_string_equal(ask(session, "qC"), "QC1");
	assert_string_equal(ask(session, "T2"), "OK");
	assert_string_equal(ask(session, "T3"), "E16");
	assert_string_equal(ask(session, "qAttached"), "1");
	rig.fake->vcpu[1]->state.activity = ACTIVITY_HALTED;
	ask(session, "qThreadExtraInfo,2");
	char text[100] = {0};
	assert_true(gdb_parse_hex(answer_text, text, strlen(answer_text) / 2));
	assert_string_equal(text, "CPU 1, halted, CPL 0");
	rig_destroy(&rig);
}

static void test_breakpoints(void **unused)
{
	struct rig rig;
	char packet[100];

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	struct vcpu_debug *debug = &rig.fake->vcpu[1]->debug;
	assert_string_equal(ask(session, "Z0,ffff800000001000,1"), "OK");
	assert_string_equal(ask(session, "Z0,ffff800000001000,1"), "OK");
	assert_string_equal(ask(session, "Z1,ffff800000001234,1"), "OK");
	assert_string_equal(ask(session, "Z2,ffff800000002000,8"), "OK");
	assert_string_equal(ask(session, "Z3,ffff800000002010,4"), "OK");
	assert_string_equal(ask(session, "Z4,ffff800000002020,2"), "OK");
	assert_int_equal(debug->breakpoint_count, 2);
	assert_true(debug->breakpoint[1] == 0xffff800000001234);
	assert_int_equal(debug->watchpoint_count, 3);
	assert_int_equal(debug->watchpoint[0].kinds, 2);
	assert_int_equal(debug->watchpoint[1].kinds, 1);
	assert_int_equal(debug->watchpoint[2].kinds, 3);
	assert_int_equal(debug->watchpoint[2].length, 2);
	assert_string_equal(ask(session, "Z5,0,1"), "");
	assert_string_equal(ask(session, "Z2,0,0"), "E16");
	assert_string_equal(ask(session, "Z2,0,ffffffff"), "E16");
	assert_string_equal(ask(session, "Z"), "");
	assert_string_equal(ask(session, "z0,ffff800000001000,1"), "OK");
	assert_string_equal(ask(session, "z0,ffff800000001000,1"), "OK");
	assert_int_equal(debug->breakpoint_count, 1);
	for (unsigned i = 0; i < 100; i++) {
		snprintf(packet, sizeof(packet), "Z0,%x,1", 0x1000 + i);
		assert_string_equal(ask(session, packet), i < 63 ? "OK" : "E1c");
		snprintf(packet, sizeof(packet), "Z2,%x,1", 0x1000 + i);
		assert_string_equal(ask(session, packet), i < 13 ? "OK" : "E1c");
	}
	assert_int_equal(debug->breakpoint_count, 64);
	assert_int_equal(debug->watchpoint_count, 16);
	gdb_session_destroy(session);
	assert_int_equal(debug->breakpoint_count + debug->watchpoint_count, 0);
	rig.session = gdb_session_create(&rig.fake->machine, NULL);
	rig_destroy(&rig);
}

/* As the machine does it: the stop brings a pause, the stub waits for the others, and takes the pause over. */
static const char *stop(struct rig *rig, unsigned first, unsigned count, int cause, uint64_t address)
{
	struct vcpu *vcpu[CPUS];

	for (unsigned i = 0; i < count; i++) {
		vcpu[i] = rig->fake->vcpu[first + i];
		vcpu[i]->debug.cause = cause;
		vcpu[i]->debug.hit_address = address;
		rig->fake->pauses++;
	}
	gdb_session_stopped(rig->session, vcpu, count);
	return take(rig->session);
}

static void test_running(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	assert_string_equal(ask(session, "vCont?"), "vCont;c;C;s;S;t");
	/* Steps leave the machine paused. */
	assert_string_equal(ask(session, "s"), "T05thread:1;");
	assert_string_equal(ask(session, "vCont;s:2;c"), "T05thread:2;");
	assert_true(rig.fake->vcpu[1]->state.rip == MEMORY_BASE + 0x1101);
	assert_int_equal(rig.fake->steps, 2);
	assert_int_equal(rig.fake->pauses, 1);
	assert_string_equal(ask(session, "?"), "T05thread:2;");
	assert_false(rig.fake->vcpu[1]->debug.skip_breakpoint_once);
	/* Go and interrupt. */
	assert_string_equal(ask(session, "vCont;c"), "");
	assert_int_equal(rig.fake->pauses, 0);
	gdb_session_input(session, "\3", 1);
	assert_string_equal(take(session), "T02thread:2;");
	assert_int_equal(rig.fake->pauses, 1);
	gdb_session_input(session, "\3", 1); /* it stands already */
	assert_string_equal(take(session), "");
	/* Breakpoint, watchpoint. */
	assert_string_equal(ask(session, "Z0,ffff800000001000,1"), "OK");
	assert_string_equal(ask(session, "Z4,ffff800000002000,8"), "OK");
	assert_string_equal(ask(session, "c"), "");
	assert_string_equal(stop(&rig, 0, 1, DEBUG_BREAKPOINT, 0xffff800000001000), "T05thread:1;");
	assert_string_equal(ask(session, "C05"), "");
	assert_string_equal(stop(&rig, 1, 1, DEBUG_WATCHPOINT, 0xffff800000002000),
	                    "T05thread:2;awatch:ffff800000002000;");
	/* Two at once: one report, and one continue lets both go. */
	assert_string_equal(ask(session, "c"), "");
	assert_string_equal(stop(&rig, 0, 2, DEBUG_BREAKPOINT, 0xffff800000001000), "T05thread:1;");
	assert_int_equal(rig.fake->pauses, 2);
	assert_string_equal(ask(session, "c"), "");
	assert_int_equal(rig.fake->pauses, 0);
	/* A breakpoint that is not there any more: the machine goes on by itself. */
	assert_string_equal(stop(&rig, 0, 1, DEBUG_BREAKPOINT, 0xffff800000001777), "");
	assert_int_equal(rig.fake->pauses, 0);
	assert_true(session->running);
	/* A packet while it runs stops it first. */
	assert_string_equal(ask(session, "?"), "T02thread:1;\nT02thread:1;");
	/* A halted one steps when an interrupt wakes it. */
	rig.fake->vcpu[0]->state.activity = ACTIVITY_HALTED;
	assert_string_equal(ask(session, "s"), "");
	assert_int_equal(rig.fake->pauses, 0);
	assert_true(rig.fake->vcpu[0]->debug.single_step);
	assert_string_equal(stop(&rig, 0, 1, DEBUG_STEP, 0), "T05thread:1;");
	assert_false(rig.fake->vcpu[0]->debug.single_step);
	rig.fake->vcpu[0]->state.activity = ACTIVITY_RUNNING;
	/* A new address. */
	assert_string_equal(ask(session, "sffff800000001800"), "T05thread:1;");
	assert_true(rig.fake->vcpu[0]->state.rip == 0xffff800000001801);
	static const char *const wrong[] = {"vCont;",   "vCont;x",   "vCont;C", "vCont;c:9",
	                                    "vCont;c:", "vCont;c;;", "C",       "vCont;c1"};
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_string_equal(ask(session, wrong[i]), "E16");
		assert_int_equal(rig.fake->pauses, 1);
	}
	rig_destroy(&rig);
}

/* --stop: the first continue gives the machine's own pause back, too. */
static void test_release(void **unused)
{
	struct fake *fake = fake_create();
	bool release = true;

	fake->pauses = 1;
	struct gdb_session *session = gdb_session_create(&fake->machine, &release);
	gdb_session_destroy(session); /* came and went */
	assert_int_equal(fake->pauses, 1);
	session = gdb_session_create(&fake->machine, &release);
	ask(session, "c");
	assert_int_equal(fake->pauses, 0);
	gdb_session_input(session, "\3", 1);
	ask(session, "c");
	assert_int_equal(fake->pauses, 0);
	gdb_session_destroy(session);
	fake_destroy(fake);
}

static const char *monitor(struct gdb_session *session, const char *command)
{
	static char text[16384];
	char packet[600] = "qRcmd,";
	size_t used = 0;

	for (const char *p = command; *p; p++)
		sprintf(packet + strlen(packet), "%02x", (uint8_t)*p);
	ask(session, packet);
	for (char *line = strtok(answer_text, "\n"); line; line = strtok(NULL, "\n")) {
		if (*line == 'O' && strcmp(line, "OK") != 0) {
			size_t length = strlen(line + 1) / 2;
			assert_true(gdb_parse_hex(line + 1, text + used, length));
			used += length;
		} else {
			assert_string_equal(line, "OK");
		}
	}
	text[used] = 0;
	return text;
}

static void test_monitor(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	struct gdb_session *session = rig.session;
	assert_non_null(strstr(monitor(session, "help"), "reset"));
	assert_string_equal(monitor(session, "info registers"), "dump of cpu 0\n");
	assert_non_null(strstr(monitor(session, "info cpus"), "1: rip ffff800000001100"));
	assert_string_equal(monitor(session, "xp/2h 0x1000"), "000000001000: 5a5a 5a5a\n");
	assert_string_equal(monitor(session, "xp 0x10000"), "000000010000:        ?\n");
	assert_non_null(strstr(monitor(session, "xp/999999b 0"), "ADDRESS"));
	assert_non_null(strstr(monitor(session, "xp"), "ADDRESS"));
	assert_non_null(strstr(monitor(session, "xp/4096b 0"), "000000000ff0:"));
	monitor(session, "reset");
	assert_int_equal(rig.fake->resets, 1);
	assert_non_null(strstr(monitor(session, "frobnicate"), "unknown command: frobnicate"));
	assert_non_null(strstr(monitor(session, ""), "unknown command"));
	monitor(session, "quit");
	assert_int_equal(rig.fake->ended, MACHINE_QUIT);
	assert_string_equal(ask(session, "qRcmd,zz"), "E16");
	rig.fake->ended = 0;
	gdb_session_input(session, "$k#6b", 5);
	assert_int_equal(rig.fake->ended, MACHINE_QUIT);
	assert_true(session->detached);
	rig_destroy(&rig);
}

/* Random packets, half of them with the beginning of a real one; the machine's pauses must add up, whatever they say.
 */
static void test_random(void **unused)
{
	static const char *const beginnings[] = {
	    "m",
	    "M",
	    "X",
	    "g",
	    "G",
	    "p",
	    "P",
	    "H",
	    "Hg",
	    "c",
	    "s",
	    "C",
	    "S",
	    "vCont;",
	    "vCont;s:",
	    "vCont;c:",
	    "Z0,",
	    "Z2,",
	    "z1,",
	    "qXfer:features:read:target.xml:",
	    "qRcmd,7870202f",
	    "qRcmd,",
	    "qThreadExtraInfo,",
	    "T",
	    "?",
	    "qSupported",
	    "vKill;",
	    "mffff800000001000,",
	    "Xffff800000000010,",
	    "Mffff800000000010,",
	    "P0=",
	};
	struct rig rig;
	unsigned seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : 77;
	char text[600], packet[1300];

	print_message("seed %u\n", seed);
	srand(seed);
	rig_create(&rig);
	for (unsigned round = 0; round < 100000; round++) {
		size_t length = 0, wanted = (size_t)(rand() % (round % 50 ? 24 : 500));
		if (rand() % 2) {
			strcpy(text, beginnings[(unsigned)rand() % (sizeof(beginnings) / sizeof(beginnings[0]))]);
			length = strlen(text);
		}
		for (; length < wanted; length++)
			text[length] = rand() % 2 ? (char)rand() : "0123456789abcdef,;:=-/"[rand() % 22];
		if (rand() % 8 == 0) {
			gdb_session_input(rig.session, text, length);
		} else {
			size_t framed = frame(packet, text, length);
			gdb_session_input(rig.session, packet, framed);
		}
		rig.session->output_length = 0;
		if (rand() % 8 == 0)
			stop(&rig, (unsigned)rand() % CPUS, 1, rand() % 3, (uint64_t)rand());
		assert_int_equal(rig.fake->pauses, rig.session->holds);
		assert_true(rig.session->running == (rig.session->holds == 0));
		if (rig.session->detached) {
			gdb_session_destroy(rig.session);
			assert_int_equal(rig.fake->pauses, 0);
			rig.session = gdb_session_create(&rig.fake->machine, NULL);
		}
	}
	rig_destroy(&rig);
}

static void *run_loop(void *loop)
{
	event_loop_run(loop);
	return NULL;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(address.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void expect(int fd, const char *send_text, const char *wanted)
{
	char buffer[1000];
	size_t used = 0;

	if (*send_text)
		assert_int_equal(write(fd, send_text, strlen(send_text)), strlen(send_text));
	while (used < strlen(wanted)) {
		ssize_t n = read(fd, buffer + used, sizeof(buffer) - used);
		assert_true(n > 0);
		used += (size_t)n;
	}
	buffer[used] = 0;
	assert_string_equal(buffer, wanted);
}

/* The real sockets: a client, a vCPU's stop from another thread, detach, the next client, the end. */
static void test_socket(void **unused)
{
	struct fake *fake = fake_create();
	char directory[] = "/tmp/ring3-gdb-XXXXXX", specification[100];
	pthread_t thread;

	assert_non_null(mkdtemp(directory));
	snprintf(specification, sizeof(specification), "unix:%s/socket", directory);
	fake->machine.loop = event_loop_create();
	assert_null(gdbstub_create("carrier-pigeon:here"));
	assert_null(gdbstub_create("tcp:nowhere"));
	assert_null(gdbstub_create("unix:/no/such/folder/socket"));
	/* Left over from a run that was killed. */
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strcpy(address.sun_path, specification + 5);
	int dead = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(dead, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(dead, 1), 0);
	assert_null(gdbstub_create(specification));
	close(dead);
	struct gdbstub *stub = gdbstub_create("tcp:127.0.0.1:0");
	assert_non_null(stub);
	gdbstub_destroy(stub);
	stub = gdbstub_create(specification);
	assert_non_null(stub);
	assert_null(gdbstub_create(specification)); /* somebody listens there */
	assert_int_equal(gdbstub_attach(stub, &fake->machine), 0);
	pthread_create(&thread, NULL, run_loop, fake->machine.loop);

	int fd = connect_to(specification + 5);
	expect(fd, "$?#3f", "+$T05thread:1;#d7");
	expect(fd, "$Z0,1000,1#d4", "+$OK#9a");
	expect(fd, "$c#63", "+");
	while (fake->pauses)
		usleep(1000);
	fake->vcpu[1]->debug.cause = DEBUG_BREAKPOINT;
	fake->vcpu[1]->debug.hit_address = 0x1000;
	fake->pauses++;
	fake->stopped(fake->stopped_owner, fake->vcpu[1]);
	expect(fd, "", "$T05thread:2;#d8");
	expect(fd, "$D#44", "+$OK#9a");
	assert_int_equal(read(fd, specification + 90, 1), 0); /* closed */
	close(fd);
	while (fake->pauses)
		usleep(1000);
	fd = connect_to(specification + 5);
	expect(fd, "$c#63", "+");
	event_loop_stop(fake->machine.loop);
	pthread_join(thread, NULL);
	gdbstub_destroy(stub);
	expect(fd, "", "$W00#b7");
	close(fd);
	assert_int_equal(fake->pauses, 0);
	assert_int_not_equal(access(specification + 5, F_OK), 0);
	rmdir(directory);
	event_loop_destroy(fake->machine.loop);
	fake_destroy(fake);
}

static int serve(const char *specification)
{
	struct fake *fake = fake_create();

	fake->machine.loop = event_loop_create();
	struct gdbstub *stub = gdbstub_create(specification);
	if (!stub || gdbstub_attach(stub, &fake->machine) != 0)
		return 1;
	event_loop_run(fake->machine.loop);
	gdbstub_destroy(stub);
	event_loop_destroy(fake->machine.loop);
	fake_destroy(fake);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_framing),     cmocka_unit_test(test_registers), cmocka_unit_test(test_memory),
	    cmocka_unit_test(test_description), cmocka_unit_test(test_threads),   cmocka_unit_test(test_breakpoints),
	    cmocka_unit_test(test_running),     cmocka_unit_test(test_release),   cmocka_unit_test(test_monitor),
	    cmocka_unit_test(test_random),      cmocka_unit_test(test_socket),
	};
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		return serve(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
