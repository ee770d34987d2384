// SPDX-License-Identifier: Apache-2.0 OR MIT
// A plugin of QEMU's: counts the instructions that run in the hypervisor's image, by the exception that
// brought the CPU there. `profile.rs` builds it, and gives its report names.
//
// Arguments: base=, size= of the image's text, guest=, host= the addresses of the two vector tables, out= a file.
// The report: a line `exit INDEX WORLD VECTOR CLASS DETAIL COUNT` for each kind of exception, a line
// `at OFFSET INDEX COUNT` for each instruction and kind.

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What is used of the plugin API (version 3); QEMU installs no header for it everywhere.
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;
enum { NO_REGISTERS, READS_REGISTERS };
struct bytes { uint8_t *data; unsigned length; };               // GByteArray
struct descriptor { struct qemu_plugin_register *handle; const char *name, *feature; };
struct descriptors { struct descriptor *data; unsigned length; }; // GArray
typedef void (*run_callback)(unsigned cpu, void *data);
void qemu_plugin_register_vcpu_init_cb(uint64_t id, void (*)(uint64_t id, unsigned cpu));
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, run_callback, int flags, void *data);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*)(uint64_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t n);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
struct descriptors *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *, struct bytes *);
struct bytes *g_byte_array_new(void);
struct bytes *g_byte_array_set_size(struct bytes *, unsigned length);

__attribute__((visibility("default"))) int qemu_plugin_version = 3;

enum { CPUS = 8, KINDS = 256 };
enum world { BOOT, HOST, GUEST };
enum { ESR, HPFAR, MPIDR, X0, REGISTERS };
static const char *const names[REGISTERS] = { "ESR_EL2", "HPFAR_EL2", "MPIDR_EL1", "x0" };

struct kind {
    unsigned world, vector, class;
    uint64_t detail, count;
};
// The first is what runs before any exception, the last what finds no room.
static struct kind kinds[KINDS];
static unsigned used = 1;

// All CPUs have the same registers, and a read is the running CPU's.
static struct qemu_plugin_register *registers[REGISTERS];
static struct bytes *scratch;
// What each CPU is at EL2 for. With -icount the number that QEMU calls with is that of the CPU for which a
// block was translated, so we look ourselves, once a block: in one, no other CPU has its turn.
static unsigned kind_of[CPUS], current;

static uint64_t base, size, guest_vectors, host_vectors;
static const char *out;
static uint64_t (*counts)[KINDS];

static uint64_t value(int which)
{
    uint64_t result = 0;
    if (!registers[which])
        return 0;
    g_byte_array_set_size(scratch, 0);
    if (qemu_plugin_read_register(registers[which], scratch) <= 0)
        return 0;
    memcpy(&result, scratch->data, scratch->length < 8 ? scratch->length : 8);
    return result;
}

static unsigned find(struct kind wanted)
{
    for (unsigned n = 1; n < used; n++) {
        if (kinds[n].world == wanted.world && kinds[n].vector == wanted.vector
            && kinds[n].class == wanted.class && kinds[n].detail == wanted.detail)
            return n;
    }
    if (used == KINDS)
        return KINDS - 1;
    kinds[used] = wanted;
    return used++;
}

static void run(unsigned cpu, void *data)
{
    (void)cpu;
    counts[(uintptr_t)data / 4][kind_of[current]]++;
}

// The first of a block.
static void start(unsigned cpu, void *data)
{
    current = (value(MPIDR) & 0xff) % CPUS;
    run(cpu, data);
}

// At the start of a vector: who comes, and why.
static void enter(unsigned cpu, void *data)
{
    current = (value(MPIDR) & 0xff) % CPUS;
    uint64_t address = base + (uintptr_t)data;
    bool guest = address - guest_vectors < 0x800;
    struct kind kind = { .world = guest ? GUEST : HOST };
    kind.vector = ((address - (guest ? guest_vectors : host_vectors)) & 0x1ff) / 0x80;
    if (kind.vector == 0) {
        uint64_t syndrome = value(ESR);
        kind.class = syndrome >> 26 & 0x3f;
        switch (kind.class) {
        case 0x16: case 0x17:                   // HVC, SMC: the function
            kind.detail = value(X0) & 0xffffffff;
            break;
        case 0x18:                              // MSR, MRS: all but the general register
            kind.detail = syndrome & 0x3ffc1f;
            break;
        case 0x20: case 0x24:                   // aborts: the IPA's page, and whether it was a store
            kind.detail = (value(HPFAR) >> 4 << 12) | (kind.class == 0x24 && syndrome & 0x40);
            if (guest && kind.detail >= 0x80000000)
                kind.detail = 0x80000000;       // memory: all alike
            break;
        }
    }
    unsigned found = find(kind);
    kinds[found].count++;
    kind_of[current] = found;
    run(cpu, data);
}

static bool is_vector(uint64_t address)
{
    for (int n = 0; n < 2; n++) {
        uint64_t offset = address - (n ? guest_vectors : host_vectors);
        if (offset >= 0x400 && offset < 0x800 && offset % 0x80 == 0)
            return true;
    }
    return false;
}

static void translate(uint64_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    for (size_t n = 0; n < qemu_plugin_tb_n_insns(block); n++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, n);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        void *offset = (void *)(uintptr_t)(address - base);
        if (address - base >= size)
            continue;
        if (is_vector(address))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, enter, READS_REGISTERS, offset);
        else if (n == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, start, READS_REGISTERS, offset);
        else
            qemu_plugin_register_vcpu_insn_exec_cb(insn, run, NO_REGISTERS, offset);
    }
}

static void start_cpu(uint64_t id, unsigned cpu)
{
    (void)id, (void)cpu;
    struct descriptors *all = qemu_plugin_get_registers();
    for (unsigned n = 0; n < all->length; n++) {
        for (int which = 0; which < REGISTERS; which++) {
            if (strcmp(all->data[n].name, names[which]) == 0)
                registers[which] = all->data[n].handle;
        }
    }
}

static void report(uint64_t id, void *data)
{
    (void)id, (void)data;
    FILE *file = fopen(out, "w");
    if (!file)
        return;
    for (unsigned n = 0; n < used; n++)
        fprintf(file, "exit %u %u %u %u %" PRIu64 " %" PRIu64 "\n", n, kinds[n].world, kinds[n].vector,
                kinds[n].class, kinds[n].detail, kinds[n].count);
    for (uint64_t at = 0; at < size; at += 4) {
        for (unsigned n = 0; n < used; n++) {
            if (counts[at / 4][n])
                fprintf(file, "at %" PRIu64 " %u %" PRIu64 "\n", at, n, counts[at / 4][n]);
        }
    }
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *machine, int count,
                                                               char **arguments)
{
    (void)machine;
    for (int n = 0; n < count; n++) {
        char *equals = strchr(arguments[n], '=');
        if (!equals)
            return -1;
        uint64_t number = strtoull(equals + 1, NULL, 0);
        switch (arguments[n][0]) {
        case 'b': base = number; break;
        case 's': size = number; break;
        case 'g': guest_vectors = number; break;
        case 'h': host_vectors = number; break;
        case 'o': out = strdup(equals + 1); break;
        default: return -1;
        }
    }
    counts = calloc(size / 4 + 1, sizeof *counts);
    scratch = g_byte_array_new();
    if (!counts || !scratch || !out)
        return -1;
    qemu_plugin_register_vcpu_init_cb(id, start_cpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, report, NULL);
    return 0;
}
