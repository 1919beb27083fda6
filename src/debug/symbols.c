/* See symbols.h. The files are read as what they are: lists that somebody may have damaged. */
#include "debug/symbols.h"

#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SIZE_MAX_FILE (2ull << 30)
#define REACH         (1ull << 20)

struct symbol {
	uint64_t address;
	const char *name; /* in `text` */
};

struct symbols {
	char *text; /* the whole file, and a 0 behind it */
	size_t length;
	struct symbol *symbol;
	size_t count, room;
};

static bool add(struct symbols *symbols, uint64_t address, const char *name)
{
	if (symbols->count == symbols->room) {
		size_t room = symbols->room ? symbols->room * 2 : 4096;
		struct symbol *more = realloc(symbols->symbol, room * sizeof(*more));

		if (!more)
			return false;
		symbols->symbol = more;
		symbols->room = room;
	}
	symbols->symbol[symbols->count++] = (struct symbol){address, name};
	return true;
}

static int compare(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

/* Lines of "address type name". Other lines make the file none of ours. */
static bool parse_map(struct symbols *symbols)
{
	char *line = symbols->text;

	while (*line) {
		char *end = line + strcspn(line, "\n"), *at, type;
		bool last = !*end;

		*end = '\0';
		errno = 0;
		uint64_t address = strtoull(line, &at, 16);
		if (*line && (at == line || errno || at[0] != ' ' || !(type = at[1]) || at[2] != ' '))
			return false;
		if (*line && strchr("tTwW", type)) {
			at[3 + strcspn(at + 3, " \t\r")] = '\0';
			if (!add(symbols, address, at + 3))
				return false;
		}
		line = last ? end : end + 1;
	}
	return true;
}

/* `length` bytes at `offset` of the file, or NULL. */
static const void *part(const struct symbols *symbols, uint64_t offset, uint64_t length)
{
	return offset <= symbols->length && length <= symbols->length - offset ? symbols->text + offset : NULL;
}

static bool parse_section(struct symbols *symbols, const Elf64_Shdr *section, const Elf64_Shdr *strings)
{
	const char *names = part(symbols, strings->sh_offset, strings->sh_size);
	const char *table = part(symbols, section->sh_offset, section->sh_size);

	if (!names || !table || !strings->sh_size || names[strings->sh_size - 1])
		return false;
	for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= section->sh_size; at += sizeof(Elf64_Sym)) {
		Elf64_Sym symbol;

		memcpy(&symbol, table + at, sizeof(symbol));
		unsigned type = ELF64_ST_TYPE(symbol.st_info);
		if ((type != STT_FUNC && type != STT_NOTYPE) || symbol.st_shndx == SHN_UNDEF ||
		    symbol.st_name >= strings->sh_size || !names[symbol.st_name])
			continue;
		if (!add(symbols, symbol.st_value, names + symbol.st_name))
			return false;
	}
	return true;
}

static bool parse_elf(struct symbols *symbols)
{
	Elf64_Ehdr header;

	if (symbols->length < sizeof(header))
		return false;
	memcpy(&header, symbols->text, sizeof(header));
	if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr) ||
	    !part(symbols, header.e_shoff, (uint64_t)header.e_shnum * sizeof(Elf64_Shdr)))
		return false;
	for (unsigned n = 0; n < header.e_shnum; n++) {
		Elf64_Shdr section, strings;
		const char *all = symbols->text + header.e_shoff;

		memcpy(&section, all + n * sizeof(section), sizeof(section));
		if (section.sh_type != SHT_SYMTAB || section.sh_link >= header.e_shnum)
			continue;
		memcpy(&strings, all + section.sh_link * sizeof(strings), sizeof(strings));
		if (!parse_section(symbols, &section, &strings))
			return false;
	}
	return true;
}

static bool read_file(struct symbols *symbols, const char *path, char *why)
{
	FILE *file = fopen(path, "re");
	struct stat status;

	if (!file || fstat(fileno(file), &status) < 0) {
		snprintf(why, SYMBOLS_WHY_SIZE, "%s: %s", path, strerror(errno));
	} else if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size > SIZE_MAX_FILE) {
		snprintf(why, SYMBOLS_WHY_SIZE, "%s: not a file of symbols", path);
	} else {
		symbols->text = calloc(1, (size_t)status.st_size + 1);
		if (symbols->text)
			symbols->length = fread(symbols->text, 1, (size_t)status.st_size, file);
		if (!symbols->text || ferror(file))
			snprintf(why, SYMBOLS_WHY_SIZE, "%s: cannot be read", path);
		else
			*why = '\0';
	}
	if (file)
		fclose(file);
	return !*why;
}

struct symbols *symbols_load(const char *path, char *why)
{
	struct symbols *symbols = calloc(1, sizeof(*symbols));

	if (!symbols) {
		snprintf(why, SYMBOLS_WHY_SIZE, "out of memory");
		return NULL;
	}
	if (!read_file(symbols, path, why)) {
		symbols_free(symbols);
		return NULL;
	}
	bool elf = symbols->length >= SELFMAG && memcmp(symbols->text, ELFMAG, SELFMAG) == 0;
	if (!(elf ? parse_elf(symbols) : parse_map(symbols)) || !symbols->count) {
		snprintf(why, SYMBOLS_WHY_SIZE, "%s: neither a System.map nor an ELF file with symbols", path);
		symbols_free(symbols);
		return NULL;
	}
	qsort(symbols->symbol, symbols->count, sizeof(*symbols->symbol), compare);
	return symbols;
}

void symbols_free(struct symbols *symbols)
{
	if (!symbols)
		return;
	free(symbols->symbol);
	free(symbols->text);
	free(symbols);
}

const char *symbols_find(const struct symbols *symbols, uint64_t address, uint64_t *offset)
{
	size_t low = 0, high = symbols->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (symbols->symbol[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0 || address - symbols->symbol[low - 1].address >= REACH)
		return NULL;
	*offset = address - symbols->symbol[low - 1].address;
	return symbols->symbol[low - 1].name;
}
