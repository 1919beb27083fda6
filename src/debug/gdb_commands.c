/* The packets that gdb sends, in the order of the GDB manual's "Packets". What is not here gets the empty reply: "not
 * supported". */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "debug/gdb_session.h"
#include "engines/engine.h"

#define SIGNAL_INT  2
#define SIGNAL_TRAP 5

static struct vcpu *vcpu_of(struct gdb_session *session, unsigned index)
{
	return session->machine->vcpu[index];
}

static unsigned cpu_count(const struct gdb_session *session)
{
	return session->machine->options.cpus;
}

static void reply_ok(struct gdb_session *session)
{
	gdb_reply(session, "OK");
}

static void reply_error(struct gdb_session *session, unsigned number)
{
	session->reply_length = 0;
	gdb_reply(session, "E%02x", number);
}

static bool starts(const char *text, const char *with, const char **rest)
{
	size_t length = strlen(with);

	if (strncmp(text, with, length) != 0)
		return false;
	*rest = text + length;
	return true;
}

/* A thread's number is its vCPU's index + 1; 0 and -1 mean any and all. False: there is no such thread. */
static bool parse_thread(const struct gdb_session *session, const char **text, bool *any, unsigned *index)
{
	uint64_t number;

	*any = true;
	if (starts(*text, "-1", text))
		return true;
	if (!gdb_parse_number(text, &number) || number > cpu_count(session))
		return false;
	if (number > 0) {
		*any = false;
		*index = (unsigned)number - 1;
	}
	return true;
}

/*
 * Stopping and going on.
 */

static const struct gdb_breakpoint *watchpoint_hit(const struct gdb_session *session, uint64_t address)
{
	for (unsigned i = 0; i < session->breakpoint_count; i++) {
		const struct gdb_breakpoint *point = &session->breakpoint[i];
		if (point->kind >= '2' && address - point->address < point->length)
			return point;
	}
	return NULL;
}

/* Remembers why the machine stands, for this and later '?'. */
static void stop_reply_set(struct gdb_session *session, struct vcpu *vcpu, unsigned signal)
{
	char *text = session->stop_reply;
	size_t room = sizeof(session->stop_reply);
	int used = snprintf(text, room, "T%02xthread:%x;", signal, vcpu->index + 1);

	if (signal == SIGNAL_TRAP && vcpu->debug.cause == DEBUG_WATCHPOINT) {
		const struct gdb_breakpoint *point = watchpoint_hit(session, vcpu->debug.hit_address);
		if (point)
			snprintf(text + used, room - (size_t)used, "%s:%" PRIx64 ";",
			         point->kind == '2'   ? "watch"
			         : point->kind == '3' ? "rwatch"
			                              : "awatch",
			         vcpu->debug.hit_address);
	}
	session->stop_thread = session->register_thread = vcpu->index;
}

static void report_stop(struct gdb_session *session)
{
	session->running = false;
	for (unsigned i = 0; i < cpu_count(session); i++)
		vcpu_of(session, i)->debug.single_step = false;
	gdb_reply(session, "%s", session->stop_reply);
	gdb_reply_send(session);
}

void gdb_release(struct gdb_session *session)
{
	if (session->release && *session->release) {
		*session->release = false;
		session->holds++;
	}
	session->running = true;
	for (; session->holds > 0; session->holds--)
		machine_resume(session->machine);
}

static bool has_breakpoint(const struct gdb_session *session, uint64_t address)
{
	for (unsigned i = 0; i < session->breakpoint_count; i++)
		if (session->breakpoint[i].kind < '2' && session->breakpoint[i].address == address)
			return true;
	return false;
}

/*
 * Several vCPUs may have stopped at the same time. One is reported; the others' breakpoints are still before them and
 * will be hit again.
 */
void gdb_session_stopped(struct gdb_session *session, struct vcpu *const *vcpu, unsigned count)
{
	session->holds += count;
	if (!session->running)
		return;
	for (unsigned i = 0; i < count; i++) {
		/* A breakpoint that has gone while the note of it was under way is none. */
		if (vcpu[i]->debug.cause == DEBUG_BREAKPOINT && !has_breakpoint(session, vcpu[i]->debug.hit_address))
			continue;
		stop_reply_set(session, vcpu[i], SIGNAL_TRAP);
		report_stop(session);
		return;
	}
	gdb_release(session);
}

void gdb_session_interrupt(struct gdb_session *session)
{
	if (!session->running)
		return;
	machine_pause(session->machine);
	session->holds++;
	stop_reply_set(session, vcpu_of(session, session->stop_thread), SIGNAL_INT);
	report_stop(session);
}

void gdb_session_exited(struct gdb_session *session, unsigned status)
{
	gdb_reply(session, "W%02x", status & 0xff);
	gdb_reply_send(session);
}

/*
 * One instruction of one vCPU. A halted one needs the machine to run until an interrupt wakes it; its first instruction
 * then ends the step.
 */
static void step(struct gdb_session *session, unsigned index)
{
	struct vcpu *vcpu = vcpu_of(session, index);

	vcpu->debug.skip_breakpoint_once = true;
	atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
	if (vcpu->state.activity != ACTIVITY_RUNNING) {
		vcpu->debug.single_step = true;
		gdb_release(session);
		return;
	}
	vcpu->debug.cause = DEBUG_STEP;
	machine_step(session->machine, vcpu);
	vcpu->debug.skip_breakpoint_once = false;
	stop_reply_set(session, vcpu, SIGNAL_TRAP);
	report_stop(session);
}

/* c [address], s [address], C signal[;address], S signal[;address]. Signals mean nothing to a machine. */
static void resume_packet(struct gdb_session *session, const char *text)
{
	bool stepping = text[0] == 's' || text[0] == 'S', with_signal = text[0] == 'C' || text[0] == 'S';
	struct vcpu *vcpu = vcpu_of(session, session->stop_thread);
	uint64_t value;

	text++;
	if (with_signal) {
		if (!gdb_parse_number(&text, &value)) {
			reply_error(session, 22);
			gdb_reply_send(session);
			return;
		}
		text += *text == ';';
	}
	if (gdb_parse_number(&text, &value)) {
		vcpu->state.rip = value;
		vcpu->engine->state_changed(vcpu);
	}
	if (stepping)
		step(session, session->stop_thread);
	else
		gdb_release(session);
}

/*
 * vCont;action[:thread]... : for each thread the leftmost action that names it. A step of one thread is a step of that
 * alone (see gdbstub.h); else, as soon as one shall go on, all do.
 */
static void vcont(struct gdb_session *session, const char *text)
{
	char action[MACHINE_CPUS_MAX] = {0};

	while (*text == ';') {
		char what = *++text;
		bool any = true;
		unsigned index = 0;
		uint64_t signal;
		if (what == 0 || !strchr("cCsSt", what))
			goto invalid;
		text++;
		if ((what == 'C' || what == 'S') && !gdb_parse_number(&text, &signal))
			goto invalid;
		if (*text == ':') {
			text++;
			if (!parse_thread(session, &text, &any, &index))
				goto invalid;
		}
		for (unsigned i = 0; i < cpu_count(session); i++)
			if ((any || i == index) && !action[i])
				action[i] = what;
	}
	if (*text)
		goto invalid;
	for (unsigned i = 0; i < cpu_count(session); i++) {
		if (action[i] == 's' || action[i] == 'S') {
			step(session, i);
			return;
		}
	}
	if (memchr(action, 'c', sizeof(action)) || memchr(action, 'C', sizeof(action))) {
		gdb_release(session);
		return;
	}
	reply_ok(session);
	gdb_reply_send(session);
	return;
invalid:
	reply_error(session, 22);
	gdb_reply_send(session);
}

/*
 * Registers.
 */

static void read_register(struct gdb_session *session, struct vcpu *vcpu, unsigned number)
{
	uint8_t value[GDB_REGISTER_MAX];
	unsigned size = gdb_register_read(vcpu, number, value);

	gdb_reply_hex(session, value, size);
}

static void read_registers(struct gdb_session *session)
{
	for (unsigned i = 0; i < gdb_register_count(); i++)
		read_register(session, vcpu_of(session, session->register_thread), i);
}

static void registers_written(struct vcpu *vcpu)
{
	mmu_update_view(vcpu);
	vcpu->engine->state_changed(vcpu);
	if (vcpu->state.rflags & FLAG_TF)
		atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
}

/* G: all in one. What cannot be set keeps its value. */
static void write_registers(struct gdb_session *session, const char *text)
{
	struct vcpu *vcpu = vcpu_of(session, session->register_thread);
	uint8_t value[GDB_REGISTER_MAX];

	for (unsigned i = 0; i < gdb_register_count(); i++) {
		unsigned size = gdb_register_size(i);
		if (!gdb_parse_hex(text, value, size))
			break;
		gdb_register_write(vcpu, i, value);
		text += 2 * size;
	}
	registers_written(vcpu);
	if (*text)
		reply_error(session, 22);
	else
		reply_ok(session);
}

static void write_register(struct gdb_session *session, const char *text)
{
	struct vcpu *vcpu = vcpu_of(session, session->register_thread);
	uint8_t value[GDB_REGISTER_MAX];
	uint64_t number;

	if (!gdb_parse_number(&text, &number) || *text != '=' || number >= gdb_register_count() ||
	    !gdb_parse_hex(text + 1, value, gdb_register_size((unsigned)number)) ||
	    !gdb_register_write(vcpu, (unsigned)number, value)) {
		reply_error(session, 22);
		return;
	}
	registers_written(vcpu);
	reply_ok(session);
}

/*
 * Memory, at linear addresses of the thread chosen by Hg.
 */

/* How many of `length` bytes can be read, from the first on. */
static size_t read_linear(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, size_t length)
{
	size_t done = 0;

	while (done < length) {
		size_t chunk = 0x1000 - ((linear + done) & 0xfff);
		if (chunk > length - done)
			chunk = length - done;
		if (!mmu_debug_read(vcpu, linear + done, buffer + done, chunk))
			break;
		done += chunk;
	}
	return done;
}

static bool parse_range(const char **text, uint64_t *address, uint64_t *length)
{
	return gdb_parse_number(text, address) && *(*text)++ == ',' && gdb_parse_number(text, length);
}

static void read_memory(struct gdb_session *session, const char *text)
{
	uint8_t buffer[GDB_PACKET_MAX / 2];
	uint64_t address, length;

	if (!parse_range(&text, &address, &length) || *text) {
		reply_error(session, 22);
		return;
	}
	if (length > sizeof(buffer))
		length = sizeof(buffer);
	size_t done = read_linear(vcpu_of(session, session->register_thread), address, buffer, length);
	if (done == 0 && length > 0)
		reply_error(session, 14);
	else
		gdb_reply_hex(session, buffer, done);
}

/* M (hexadecimal) and X (binary). All or nothing. */
static void write_memory(struct gdb_session *session, const char *text, bool binary)
{
	uint8_t buffer[GDB_PACKET_MAX];
	uint64_t address, length;
	const char *end = session->packet + session->packet_length;

	if (!parse_range(&text, &address, &length) || *text++ != ':' ||
	    length != (uint64_t)(end - text) / (binary ? 1 : 2) || length > sizeof(buffer)) {
		reply_error(session, 22);
		return;
	}
	if (binary) {
		memcpy(buffer, text, length);
	} else if (!gdb_parse_hex(text, buffer, length)) {
		reply_error(session, 22);
		return;
	}
	if (length > 0 && !mmu_debug_write(vcpu_of(session, session->register_thread), address, buffer, length)) {
		reply_error(session, 14);
		return;
	}
	for (unsigned i = 0; i < cpu_count(session); i++)
		vcpu_of(session, i)->engine->flush_code(vcpu_of(session, i));
	reply_ok(session);
}

/*
 * Breakpoints and watchpoints.
 */

void gdb_install_breakpoints(struct gdb_session *session)
{
	for (unsigned cpu = 0; cpu < cpu_count(session); cpu++) {
		struct vcpu_debug *debug = &vcpu_of(session, cpu)->debug;
		debug->breakpoint_count = debug->watchpoint_count = 0;
		for (unsigned i = 0; i < session->breakpoint_count; i++) {
			const struct gdb_breakpoint *point = &session->breakpoint[i];
			if (point->kind < '2' && debug->breakpoint_count < GDB_BREAKPOINTS_MAX) {
				debug->breakpoint[debug->breakpoint_count++] = point->address;
			} else if (point->kind >= '2' && debug->watchpoint_count < GDB_WATCHPOINTS_MAX) {
				unsigned slot = debug->watchpoint_count++;
				debug->watchpoint[slot].address = point->address;
				debug->watchpoint[slot].length = point->length;
				debug->watchpoint[slot].kinds = point->kind == '2' ? 2 : point->kind == '3' ? 1 : 3;
			}
		}
		mmu_update_watches(vcpu_of(session, cpu));
		vcpu_of(session, cpu)->engine->flush_code(vcpu_of(session, cpu));
		if (debug->breakpoint_count > 0)
			atomic_fetch_or(&vcpu_of(session, cpu)->attention, ATTENTION_STEP);
	}
}

static int breakpoint_find(const struct gdb_session *session, const struct gdb_breakpoint *wanted)
{
	for (unsigned i = 0; i < session->breakpoint_count; i++) {
		const struct gdb_breakpoint *point = &session->breakpoint[i];
		if (point->kind == wanted->kind && point->address == wanted->address && point->length == wanted->length)
			return (int)i;
	}
	return -1;
}

/* Is there room for one more of this kind? */
static bool breakpoint_fits(const struct gdb_session *session, char kind)
{
	unsigned same = 0;

	for (unsigned i = 0; i < session->breakpoint_count; i++)
		same += (session->breakpoint[i].kind < '2') == (kind < '2');
	return same < (kind < '2' ? GDB_BREAKPOINTS_MAX : GDB_WATCHPOINTS_MAX);
}

/* Z and z, type, address, kind; conditions and commands are not offered to gdb and not read. */
static void breakpoint_packet(struct gdb_session *session, const char *text)
{
	bool insert = *text++ == 'Z';
	struct gdb_breakpoint point = {.kind = *text};

	if (point.kind < '0' || point.kind > '4')
		return;
	text++;
	if (*text++ != ',' || !parse_range(&text, &point.address, &point.length) || point.length > 0x1000 ||
	    (point.kind >= '2' && point.length == 0)) {
		reply_error(session, 22);
		return;
	}
	int found = breakpoint_find(session, &point);
	if (insert && found < 0) {
		if (!breakpoint_fits(session, point.kind)) {
			reply_error(session, 28);
			return;
		}
		session->breakpoint[session->breakpoint_count++] = point;
	} else if (!insert && found >= 0) {
		session->breakpoint[found] = session->breakpoint[--session->breakpoint_count];
	}
	gdb_install_breakpoints(session);
	reply_ok(session);
}

/*
 * Queries.
 */

static void thread_info(struct gdb_session *session, const char *text)
{
	static const char *const activities[] = {"running", "halted", "waiting for SIPI", "shut down"};
	unsigned index = 0;
	bool any;
	char name[64];

	if (!parse_thread(session, &text, &any, &index) || any) {
		reply_error(session, 22);
		return;
	}
	const struct cpu_state *state = &vcpu_of(session, index)->state;
	int length = snprintf(name, sizeof(name), "CPU %u, %s, CPL %u", index,
	                      state->activity < 4 ? activities[state->activity] : "?", cpu_cpl(state));
	gdb_reply_hex(session, name, (size_t)length);
}

static void transfer_description(struct gdb_session *session, const char *text)
{
	uint64_t offset, length;
	size_t total;

	if (!starts(text, "target.xml:", &text)) {
		reply_error(session, 0);
		return;
	}
	if (!parse_range(&text, &offset, &length)) {
		reply_error(session, 22);
		return;
	}
	char *description = gdb_target_description(&total);
	if (!description || offset > total) {
		reply_error(session, 22);
		free(description);
		return;
	}
	if (length > GDB_PACKET_MAX / 2)
		length = GDB_PACKET_MAX / 2; /* escaped it still fits */
	bool last = length >= total - offset;
	gdb_reply(session, last ? "l" : "m");
	gdb_reply_bytes(session, description + offset, last ? total - offset : length);
	free(description);
}

static void monitor_packet(struct gdb_session *session, const char *text)
{
	char command[256];
	size_t length = strlen(text) / 2;

	if (length >= sizeof(command) || !gdb_parse_hex(text, command, length)) {
		reply_error(session, 22);
		gdb_reply_send(session);
		return;
	}
	command[length] = 0;
	gdb_monitor(session, command);
}

static void query(struct gdb_session *session, const char *text)
{
	if (starts(text, "qSupported", &text)) {
		gdb_reply(session, "PacketSize=%x;QStartNoAckMode+;vContSupported+;qXfer:features:read+",
		          GDB_PACKET_MAX);
	} else if (starts(text, "qXfer:features:read:", &text)) {
		transfer_description(session, text);
	} else if (starts(text, "qRcmd,", &text)) {
		monitor_packet(session, text);
		return;
	} else if (starts(text, "qfThreadInfo", &text)) {
		for (unsigned i = 0; i < cpu_count(session); i++)
			gdb_reply(session, "%c%x", i == 0 ? 'm' : ',', i + 1);
	} else if (starts(text, "qsThreadInfo", &text)) {
		gdb_reply(session, "l");
	} else if (starts(text, "qThreadExtraInfo,", &text)) {
		thread_info(session, text);
	} else if (starts(text, "qAttached", &text)) {
		gdb_reply(session, "1");
	} else if (strcmp(text, "qC") == 0) {
		gdb_reply(session, "QC%x", session->stop_thread + 1);
	} else if (starts(text, "qSymbol", &text)) {
		reply_ok(session);
	}
	gdb_reply_send(session);
}

static void set_thread(struct gdb_session *session, const char *text)
{
	unsigned index = session->stop_thread;
	char what = *text ? *text++ : 0;
	bool any;

	if ((what != 'g' && what != 'c') || !parse_thread(session, &text, &any, &index)) {
		reply_error(session, 22);
		return;
	}
	if (what == 'g')
		session->register_thread = index;
	else if (!any)
		session->stop_thread = index;
	reply_ok(session);
}

static void thread_alive(struct gdb_session *session, const char *text)
{
	unsigned index;
	bool any;

	if (parse_thread(session, &text, &any, &index))
		reply_ok(session);
	else
		reply_error(session, 22);
}

static void kill_machine(struct gdb_session *session)
{
	session->detached = true;
	machine_end(session->machine, MACHINE_QUIT, 0);
}

void gdb_command(struct gdb_session *session)
{
	const char *packet = session->packet, *text = packet + 1;

	session->reply_length = 0;
	switch (packet[0]) {
	case '?':
		gdb_reply(session, "%s", session->stop_reply);
		break;
	case 'c':
	case 'C':
	case 's':
	case 'S':
		resume_packet(session, packet);
		return;
	case 'D':
		reply_ok(session);
		session->detached = true;
		break;
	case 'g':
		read_registers(session);
		break;
	case 'G':
		write_registers(session, text);
		break;
	case 'H':
		set_thread(session, text);
		break;
	case 'k':
		kill_machine(session);
		return;
	case 'm':
		read_memory(session, text);
		break;
	case 'M':
		write_memory(session, text, false);
		break;
	case 'X':
		write_memory(session, text, true);
		break;
	case 'p': {
		uint64_t number;
		if (gdb_parse_number(&text, &number) && number < gdb_register_count())
			read_register(session, vcpu_of(session, session->register_thread), (unsigned)number);
		else
			reply_error(session, 22);
		break;
	}
	case 'P':
		write_register(session, text);
		break;
	case 'q':
		query(session, packet);
		return;
	case 'Q':
		if (strcmp(packet, "QStartNoAckMode") == 0) {
			session->no_ack = true;
			reply_ok(session);
		}
		break;
	case 'T':
		thread_alive(session, text);
		break;
	case 'v':
		if (strcmp(packet, "vCont?") == 0) {
			gdb_reply(session, "vCont;c;C;s;S;t");
		} else if (starts(packet, "vCont", &text)) {
			vcont(session, text);
			return;
		} else if (starts(packet, "vKill;", &text)) {
			reply_ok(session);
			kill_machine(session);
		}
		break;
	case 'z':
	case 'Z':
		breakpoint_packet(session, packet);
		break;
	}
	gdb_reply_send(session);
}
