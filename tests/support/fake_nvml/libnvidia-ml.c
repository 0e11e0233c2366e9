/*
 * A stand-in for NVIDIA's management library: the calls that celery_allocator/inventory/nvml/ makes, answered from a
 * script. Built and driven by __init__.py beside this file.
 *
 * The environment variable FAKE_NVML_SCRIPT names the script. Its lines, with fields divided by '|':
 *
 *     init|CODE                                         what opening the library returns (0: success)
 *     driver|GENERATION                                 another number: the driver was restarted
 *     gpu|UUID|NAME|MEMORY_BYTES|MASK|HANDLE|MEMORY|AFFINITY
 *     more|UUID|RESERVED_BYTES|MAJOR|MINOR|NUMA|BUS     (NUMA -1: not supported)
 *     slice|UUID|NAME|MEMORY_BYTES|RESERVED_BYTES|PARENT|NUMBER|INSTANCE    a MIG slice; MIG is on at its parent
 *     now|UUID|USED_BYTES|UTILIZATION|TEMPERATURE|MILLIWATTS|CODE
 *     process|UUID|PID|BYTES                            (BYTES -1: the driver does not tell)
 *     health|UUID|ECC|ROWS_PENDING|ROWS_FAILED|RECOVERY (-1: not supported)
 *     link|UUID|UUID|LEVEL|NVLINK                       how near two are: NVML's level, and 1 if NVLink joins them
 *     pairs|CODE                                        what asking for the NVLink between two GPUs returns
 *     listen|CODE                                       what listening to an event set returns
 *     xid|SEQUENCE|UUID|XID|INSTANCE                    an error that the driver reports; later ones have larger numbers
 *
 * MASK is the core mask in hexadecimal, lowest word first, words divided by ','. HANDLE, MEMORY and AFFINITY are the
 * codes that these three queries return. Codes are those of NVML. A GPU without a line `now` uses nothing; CODE is
 * what the queries of utilization, temperature, power and processes return. The script is read again whenever the library
 * is opened or an event set listened to, so that a test can change it. As with the real one: an event set gets what comes
 * after it was registered, opening the library once more while it is open asks no driver, and what was opened before the
 * driver was restarted is of no use after it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       TIMEOUT = 10, UNKNOWN = 999, MAX_GPUS = 16, MAX_WORDS = 32, MAX_PROCESSES = 64, MAX_LINKS = 64, TEXT = 96 };
enum { RECOVERY_FIELD = 230, XID_EVENT = 8, P2P_NVLINK = 2, P2P_OK = 0, P2P_NOT_SUPPORTED = 5, TOPOLOGY_SYSTEM = 50 };

/* What a process uses, as version 2 and 3 of the query have it. */
struct process {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
};

/* A GPU, or a MIG slice of one. */
struct gpu {
    char uuid[TEXT], name[TEXT], bus[32];
    unsigned long long total, reserved, mask[MAX_WORDS];
    int handle_code, memory_code, affinity_code, now_code;
    unsigned long long used;
    unsigned int utilization, temperature, milliwatts, process_count;
    struct process processes[MAX_PROCESSES];
    int major, minor, numa;
    int ecc, rows_pending, rows_failed, recovery;
    struct gpu *parent;
    unsigned int number, instance, slice_count;
};

struct link {
    struct gpu *one, *other;
    int level, nvlink;
};

struct events {
    struct gpu *gpu;
    long long seen;
};

static struct gpu gpus[MAX_GPUS], slices[MAX_GPUS];
static struct link links[MAX_LINKS];
static unsigned int gpu_count, slice_count, link_count;
static int init_code, open_count, pairs_code, listen_code;
static long long generation, opened_generation;

static void copy_text(char *target, size_t room, const char *source) { snprintf(target, room, "%s", source); }

static void part(char *line, char **field, int count) {
    for (int i = 0; i < count; i++)
        if (!(field[i] = strsep(&line, "|")))
            abort(); /* a mistake in the test, not a scenario */
}

static struct gpu *find(const char *uuid) {
    for (unsigned int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid))
            return &gpus[i];
    for (unsigned int i = 0; i < slice_count; i++)
        if (!strcmp(slices[i].uuid, uuid))
            return &slices[i];
    return NULL;
}

static struct gpu *there(const char *uuid) {
    struct gpu *gpu = find(uuid);
    if (!gpu)
        abort();
    return gpu;
}

static void read_mask(struct gpu *gpu, char *text) {
    for (int word = 0; word < MAX_WORDS && text && *text; word++) {
        gpu->mask[word] = strtoull(text, &text, 16);
        if (*text == ',')
            text++;
    }
}

static struct gpu *new_gpu(struct gpu *gpu, char **field) {
    memset(gpu, 0, sizeof *gpu);
    copy_text(gpu->uuid, sizeof gpu->uuid, field[1]);
    copy_text(gpu->name, sizeof gpu->name, field[2]);
    gpu->total = strtoull(field[3], NULL, 10);
    gpu->numa = gpu->ecc = gpu->rows_pending = gpu->recovery = -1;
    return gpu;
}

static void read_gpu(char *line) {
    char *field[8];
    part(line, field, 8);
    struct gpu *gpu = new_gpu(&gpus[gpu_count++], field);
    read_mask(gpu, field[4]);
    gpu->handle_code = atoi(field[5]);
    gpu->memory_code = atoi(field[6]);
    gpu->affinity_code = atoi(field[7]);
}

static void read_more(char *line) {
    char *field[7];
    part(line, field, 7);
    struct gpu *gpu = there(field[1]);
    gpu->reserved = strtoull(field[2], NULL, 10);
    gpu->major = atoi(field[3]);
    gpu->minor = atoi(field[4]);
    gpu->numa = atoi(field[5]);
    copy_text(gpu->bus, sizeof gpu->bus, field[6]);
}

static void read_slice(char *line) {
    char *field[8];
    part(line, field, 8);
    struct gpu *slice = new_gpu(&slices[slice_count++], field);
    slice->reserved = strtoull(field[4], NULL, 10);
    slice->parent = there(field[5]);
    slice->number = (unsigned int)atoi(field[6]);
    slice->instance = (unsigned int)atoi(field[7]);
    slice->handle_code = slice->parent->handle_code;
    slice->parent->slice_count++;
}

static void read_now(char *line) {
    char *field[7];
    part(line, field, 7);
    struct gpu *gpu = there(field[1]);
    gpu->used = strtoull(field[2], NULL, 10);
    gpu->utilization = (unsigned int)atoi(field[3]);
    gpu->temperature = (unsigned int)atoi(field[4]);
    gpu->milliwatts = (unsigned int)atoi(field[5]);
    gpu->now_code = atoi(field[6]);
}

static void read_process(char *line) {
    char *field[4];
    part(line, field, 4);
    struct gpu *gpu = there(field[1]);
    if (gpu->process_count < MAX_PROCESSES) {
        struct process *process = &gpu->processes[gpu->process_count++];
        process->pid = (unsigned int)atoi(field[2]);
        process->used = (unsigned long long)atoll(field[3]); /* -1 is NVML_VALUE_NOT_AVAILABLE */
    }
}

static void read_health(char *line) {
    char *field[6];
    part(line, field, 6);
    struct gpu *gpu = there(field[1]);
    gpu->ecc = atoi(field[2]);
    gpu->rows_pending = atoi(field[3]);
    gpu->rows_failed = atoi(field[4]);
    gpu->recovery = atoi(field[5]);
}

static void read_link(char *line) {
    char *field[5];
    part(line, field, 5);
    if (link_count == MAX_LINKS)
        abort();
    links[link_count++] = (struct link){there(field[1]), there(field[2]), atoi(field[3]), atoi(field[4])};
}

static FILE *open_script(void) {
    const char *path = getenv("FAKE_NVML_SCRIPT");
    FILE *script = path ? fopen(path, "r") : NULL;
    if (!script)
        abort();
    return script;
}

static void read_script(void) {
    char line[1024];
    FILE *script = open_script();
    gpu_count = slice_count = link_count = 0;
    init_code = pairs_code = listen_code = SUCCESS;
    generation = 0;
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "init|", 5))
            init_code = atoi(line + 5);
        else if (!strncmp(line, "driver|", 7))
            generation = atoll(line + 7);
        else if (!strncmp(line, "pairs|", 6))
            pairs_code = atoi(line + 6);
        else if (!strncmp(line, "listen|", 7))
            listen_code = atoi(line + 7);
        else if (!strncmp(line, "gpu|", 4) && gpu_count < MAX_GPUS)
            read_gpu(line);
        else if (!strncmp(line, "more|", 5))
            read_more(line);
        else if (!strncmp(line, "slice|", 6) && slice_count < MAX_GPUS)
            read_slice(line);
        else if (!strncmp(line, "now|", 4))
            read_now(line);
        else if (!strncmp(line, "process|", 8))
            read_process(line);
        else if (!strncmp(line, "health|", 7))
            read_health(line);
        else if (!strncmp(line, "link|", 5))
            read_link(line);
    }
    fclose(script);
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    read_script();
    if (open_count) {
        open_count++;
        return SUCCESS;
    }
    if (init_code == SUCCESS) {
        open_count++;
        opened_generation = generation;
    }
    return init_code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!open_count)
        return UNINITIALIZED;
    open_count--;
    return SUCCESS;
}

/* Not NVML's: how often the library is open now. */
int fakeOpenCount(void) { return open_count; }

const char *nvmlErrorString(int code) {
    static char text[64];
    snprintf(text, sizeof text, "scripted error %d", code);
    return text;
}

/* Whether the driver answers at all. */
static int driver(void) {
    if (!open_count)
        return UNINITIALIZED;
    return init_code || generation != opened_generation ? UNKNOWN : SUCCESS;
}

/* Whether it reaches a GPU. */
static int reach(struct gpu *gpu) {
    int code = driver();
    return code ? code : gpu->handle_code;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = gpu_count;
    return driver();
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **handle) {
    if (driver())
        return driver();
    if (index >= gpu_count)
        return INVALID_ARGUMENT;
    *handle = &gpus[index];
    return gpus[index].handle_code;
}

static int give_text(char *target, unsigned int room, const char *source) {
    if (!open_count)
        return UNINITIALIZED;
    if (strlen(source) >= room)
        return INSUFFICIENT_SIZE;
    copy_text(target, room, source);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **handle) {
    if (driver())
        return driver();
    for (unsigned int i = 0; i < gpu_count; i++)
        if (gpus[i].handle_code) /* "if any GPU has fallen off the bus", says nvml.h */
            return gpus[i].handle_code;
    *handle = find(uuid);
    return *handle ? (*handle)->handle_code : NOT_FOUND;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *uuid, unsigned int room) { return give_text(uuid, room, gpu->uuid); }

int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned int room) { return give_text(name, room, gpu->name); }

int nvmlDeviceGetCudaComputeCapability(struct gpu *gpu, int *major, int *minor) {
    if (!gpu->major)
        return NOT_SUPPORTED;
    *major = gpu->major;
    *minor = gpu->minor;
    return reach(gpu);
}

struct memory {
    unsigned long long total, free, used;
};

int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    if (reach(gpu))
        return reach(gpu);
    if (gpu->memory_code)
        return gpu->memory_code;
    memory->total = gpu->total;
    memory->free = gpu->total - gpu->reserved - gpu->used;
    memory->used = gpu->used + gpu->reserved;
    return SUCCESS;
}

struct memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, struct memory_v2 *memory) {
    struct memory first;
    int code = nvmlDeviceGetMemoryInfo(gpu, &first);
    if (code)
        return code;
    memory->total = first.total;
    memory->reserved = gpu->reserved;
    memory->free = first.free;
    memory->used = gpu->used;
    return SUCCESS;
}

/* --- MIG */

int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned int *now, unsigned int *later) {
    *now = *later = gpu->slice_count > 0;
    return reach(gpu);
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *gpu, unsigned int *count) {
    *count = gpu->slice_count ? 7 : 0;
    return reach(gpu);
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *gpu, unsigned int number, struct gpu **handle) {
    if (reach(gpu))
        return reach(gpu);
    for (unsigned int i = 0; i < slice_count; i++)
        if (slices[i].parent == gpu && slices[i].number == number) {
            *handle = &slices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct gpu *slice, struct gpu **handle) {
    if (!slice->parent)
        return INVALID_ARGUMENT;
    *handle = slice->parent;
    return reach(slice->parent);
}

int nvmlDeviceGetGpuInstanceId(struct gpu *slice, unsigned int *instance) {
    *instance = slice->instance;
    return slice->parent ? reach(slice->parent) : NOT_SUPPORTED;
}

/* --- where it sits */

int nvmlDeviceGetCpuAffinity(struct gpu *gpu, unsigned int words, unsigned long *set) {
    if (reach(gpu))
        return reach(gpu);
    if (gpu->affinity_code)
        return gpu->affinity_code;
    for (unsigned int word = 0; word < words; word++)
        set[word] = word < MAX_WORDS ? (unsigned long)gpu->mask[word] : 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(struct gpu *gpu, unsigned int words, unsigned long *set, unsigned int scope) {
    (void)scope;
    if (gpu->numa < 0)
        return NOT_SUPPORTED;
    memset(set, 0, words * sizeof *set);
    set[gpu->numa / 64] = 1ul << gpu->numa % 64;
    return reach(gpu);
}

struct pci {
    char legacy[16];
    unsigned int domain, bus, device, id, subsystem;
    char address[32];
};

int nvmlDeviceGetPciInfo_v3(struct gpu *gpu, struct pci *pci) {
    memset(pci, 0, sizeof *pci);
    if (!*gpu->bus)
        return NOT_SUPPORTED;
    copy_text(pci->address, sizeof pci->address, gpu->bus);
    return reach(gpu);
}

static struct link *between(struct gpu *one, struct gpu *other) {
    for (unsigned int i = 0; i < link_count; i++)
        if ((links[i].one == one && links[i].other == other) || (links[i].one == other && links[i].other == one))
            return &links[i];
    return NULL;
}

int nvmlDeviceGetTopologyCommonAncestor(struct gpu *one, struct gpu *other, int *level) {
    struct link *link = between(one, other);
    *level = link ? link->level : TOPOLOGY_SYSTEM;
    return reach(one);
}

int nvmlDeviceGetP2PStatus(struct gpu *one, struct gpu *other, int which, int *status) {
    struct link *link = between(one, other);
    *status = which == P2P_NVLINK && link && link->nvlink ? P2P_OK : P2P_NOT_SUPPORTED;
    return pairs_code ? pairs_code : reach(one);
}

/* The n-th GPU that NVLink joins to this one. */
static struct gpu *joined(struct gpu *gpu, unsigned int n) {
    for (unsigned int i = 0; i < link_count; i++)
        if (links[i].nvlink && (links[i].one == gpu || links[i].other == gpu) && !n--)
            return links[i].one == gpu ? links[i].other : links[i].one;
    return NULL;
}

int nvmlDeviceGetNvLinkState(struct gpu *gpu, unsigned int n, unsigned int *active) {
    *active = joined(gpu, n) != NULL;
    return n < 18 ? reach(gpu) : INVALID_ARGUMENT;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct gpu *gpu, unsigned int n, struct pci *pci) {
    struct gpu *end = joined(gpu, n);
    return end ? nvmlDeviceGetPciInfo_v3(end, pci) : INVALID_ARGUMENT;
}

/* --- what it does now; of a slice, the driver tells its memory and processes */

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, unsigned int *rates) {
    rates[0] = gpu->utilization;
    rates[1] = 0; /* of the memory's bandwidth */
    return gpu->parent ? NOT_SUPPORTED : gpu->now_code;
}

int nvmlDeviceGetTemperature(struct gpu *gpu, unsigned int sensor, unsigned int *celsius) {
    (void)sensor;
    *celsius = gpu->temperature;
    return gpu->parent ? INVALID_ARGUMENT : gpu->now_code;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned int *milliwatts) {
    *milliwatts = gpu->milliwatts;
    return gpu->parent ? INVALID_ARGUMENT : gpu->now_code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process *processes) {
    if (gpu->now_code)
        return gpu->now_code;
    unsigned int room = *count;
    *count = gpu->process_count;
    if (!gpu->process_count)
        return SUCCESS;
    if (room < gpu->process_count)
        return INSUFFICIENT_SIZE;
    memcpy(processes, gpu->processes, gpu->process_count * sizeof *processes);
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process *processes) {
    (void)processes;
    *count = 0;
    return gpu->parent ? INVALID_ARGUMENT : gpu->now_code;
}

/* --- its health */

int nvmlDeviceGetTotalEccErrors(struct gpu *gpu, int kind, int counter, unsigned long long *count) {
    (void)counter;
    *count = kind == 1 ? (unsigned long long)gpu->ecc : 0;
    return gpu->ecc < 0 || gpu->parent ? NOT_SUPPORTED : reach(gpu);
}

int nvmlDeviceGetRemappedRows(struct gpu *gpu, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending,
                              unsigned int *failed) {
    *corrected = *uncorrected = 0;
    *pending = gpu->rows_pending > 0;
    *failed = gpu->rows_failed > 0;
    return gpu->rows_pending < 0 || gpu->parent ? NOT_SUPPORTED : reach(gpu);
}

struct field {
    unsigned int id, scope;
    long long timestamp, latency;
    int type, code;
    unsigned long long value;
};

int nvmlDeviceGetFieldValues(struct gpu *gpu, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].value = (unsigned int)gpu->recovery;
        fields[i].code = fields[i].id == RECOVERY_FIELD && gpu->recovery >= 0 && !gpu->parent ? SUCCESS : NOT_SUPPORTED;
    }
    return reach(gpu);
}

/* --- what the driver reports meanwhile */

struct event {
    struct gpu *gpu;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
};

/* The first Xid of a GPU after `seen` (NULL: the largest number of all). Returns its number, or `seen`. */
static long long next_xid(struct gpu *gpu, long long seen, struct event *event) {
    char line[1024], uuid[TEXT];
    long long number, found = seen;
    unsigned int xid, instance;
    FILE *script = open_script();
    while (fgets(line, sizeof line, script)) {
        if (sscanf(line, "xid|%lld|%95[^|]|%u|%u", &number, uuid, &xid, &instance) != 4 || number <= found)
            continue;
        if (event && strcmp(uuid, gpu->uuid))
            continue;
        found = number;
        if (event) {
            *event = (struct event){gpu, XID_EVENT, xid, instance, instance};
            break;
        }
    }
    fclose(script);
    return found;
}

int nvmlEventSetCreate(struct events **set) {
    if (driver())
        return driver();
    *set = calloc(1, sizeof **set);
    return SUCCESS;
}

int nvmlEventSetFree(struct events *set) {
    free(set);
    return open_count ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetSupportedEventTypes(struct gpu *gpu, unsigned long long *types) {
    *types = XID_EVENT;
    return gpu->parent ? NOT_SUPPORTED : reach(gpu);
}

int nvmlDeviceRegisterEvents(struct gpu *gpu, unsigned long long types, struct events *set) {
    if (gpu->parent || !(types & XID_EVENT))
        return NOT_SUPPORTED;
    set->gpu = gpu;
    set->seen = next_xid(NULL, -1, NULL);
    return reach(gpu);
}

int nvmlEventSetWait_v2(struct events *set, struct event *event, unsigned int timeout) {
    (void)timeout;
    read_script();
    if (driver() || listen_code)
        return driver() ? driver() : listen_code;
    long long number = next_xid(set->gpu, set->seen, event);
    if (number == set->seen)
        return TIMEOUT;
    set->seen = number;
    return SUCCESS;
}
