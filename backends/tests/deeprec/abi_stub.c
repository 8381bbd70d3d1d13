/* ABI stub: a library with the four functions of DeepRec's serving processor, for tests.
 *
 * It is not DeepRec and holds none of its code. It keeps to what is known of the interface,
 * faults included, and computes a small model of its own:
 *
 *     e = sum of table[id mod rows] over all ids of a row (of a string: its length)
 *     score = sigmoid(w . e + v . floats of the row + b)
 *
 * The SavedModel's folder holds abi_stub.signature, one tensor a line:
 *
 *     i ALIAS TENSOR TYPE RANK DIM...      an input; TYPE is long, int, float or string
 *     o ALIAS TENSOR KIND RANK DIM...      an output; KIND is score or embedding
 *
 * and abi_stub.weights: int32 rows, dim, floats; float table[rows][dim], w[dim], v[floats], b.
 * With checkpoint_dir these are in SUB/model.ckpt-N.index, where SUB/checkpoint is newest; an
 * update of single rows is in SUB/.incremental_checkpoint/incremental_model.ckpt-N.index:
 * int32 n, then n times int64 row, float[dim].
 *
 * ABI_STUB holds words, separated by commas:
 *   tensor       an older build: names of tensors; an unknown one is an error of status 500
 *                (by default it ends the process, as in builds that map aliases)
 *   init-fails, init-aborts, init-hangs
 *   error, abort, segv, exit, hang         in the 5th call of process that is no description
 *   garbage, empty, negative, null, short  what that call hands out is broken
 *   misread      a build that reads no request with one tensor
 *   odd-json, no-json, other-json          how it describes itself
 *   info-fails   get_serving_model_info answers 500
 * ABI_STUB_POLL_MS: how often it looks for files and updates; 60000 if not set.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_TENSORS = 64, MAX_NAME = 128, MAX_DIMS = 8, MAX_FLOATS = 64 };
enum { T_FLOAT = 1, T_INT = 3, T_STRING = 7, T_LONG = 9 };

typedef struct {
  char alias[MAX_NAME], tensor[MAX_NAME], kind[16];
  int type, rank;
  long dims[MAX_DIMS];
} Spec;

typedef struct {
  int rows, dim, floats;
  float *table, *w, *v, b;
} Weights;

typedef struct {
  Spec inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int n_inputs, n_outputs, calls;
  char saved[4096], parent[4096], signature[MAX_NAME];
  char full[4600];
  long full_version, delta_version;
  Weights *weights; /* replaced whole by a full update; its rows in place by a delta */
  pthread_mutex_t guard;
} Model;

static int has(const char *word) {
  const char *words = getenv("ABI_STUB");
  size_t n = strlen(word);
  for (const char *at = words; at && *at;) {
    const char *end = strchrnul(at, ',');
    if ((size_t)(end - at) == n && !strncmp(at, word, n)) return 1;
    at = *end ? end + 1 : end;
  }
  return 0;
}

static void rest(void) {
  const char *ms = getenv("ABI_STUB_POLL_MS");
  usleep(1000u * (unsigned)(ms ? atoi(ms) : 60000));
}

/* The text of a JSON key, without unescaping; enough for what the tests write. */
static int config_text(const char *json, const char *key, char *into, size_t size) {
  char quoted[128];
  snprintf(quoted, sizeof quoted, "\"%s\": \"", key);
  const char *at = strstr(json, quoted);
  if (!at) return 0;
  at += strlen(quoted);
  const char *end = strchr(at, '"');
  snprintf(into, size, "%.*s", (int)(end - at), at);
  return 1;
}

static int read_signature(Model *m) {
  char path[5000], side;
  snprintf(path, sizeof path, "%s/abi_stub.signature", m->saved);
  FILE *f = fopen(path, "r");
  if (!f) return 0;
  Spec s;
  while (fscanf(f, " %c %127s %127s %15s %d", &side, s.alias, s.tensor, s.kind, &s.rank) == 5) {
    for (int i = 0; i < s.rank; i++)
      if (fscanf(f, "%ld", &s.dims[i]) != 1) return 0;
    s.type = !strcmp(s.kind, "long")     ? T_LONG
             : !strcmp(s.kind, "int")    ? T_INT
             : !strcmp(s.kind, "string") ? T_STRING
                                         : T_FLOAT;
    if (side == 'i') m->inputs[m->n_inputs++] = s;
    else m->outputs[m->n_outputs++] = s;
  }
  fclose(f);
  return m->n_outputs > 0;
}

static Weights *read_weights(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) return NULL;
  Weights *w = calloc(1, sizeof *w);
  if (fread(&w->rows, 4, 1, f) != 1 || fread(&w->dim, 4, 1, f) != 1 || fread(&w->floats, 4, 1, f) != 1)
    return fclose(f), NULL;
  size_t n = (size_t)w->rows * w->dim;
  w->table = malloc(4 * (n + w->dim + w->floats));
  w->w = w->table + n;
  w->v = w->w + w->dim;
  size_t all = n + w->dim + w->floats;
  int good = fread(w->table, 4, all, f) == all && fread(&w->b, 4, 1, f) == 1;
  fclose(f);
  return good ? w : NULL;
}

/* The largest number behind the last '-' of *.index in a folder; -1 for none. */
static long newest_index(const char *folder, char *name, size_t size) {
  DIR *d = opendir(folder);
  long best = -1;
  if (!d) return best;
  for (struct dirent *e; (e = readdir(d));) {
    char *dot = strstr(e->d_name, ".index"), *dash = strrchr(e->d_name, '-');
    if (!dot || dot[6] || !dash || atol(dash + 1) <= best) continue;
    best = atol(dash + 1);
    snprintf(name, size, "%s/%.*s", folder, (int)(dot - e->d_name), e->d_name);
  }
  closedir(d);
  return best;
}

static int newest_folder(const char *parent, char *found, size_t size) {
  DIR *d = opendir(parent);
  struct timespec best = {0, 0};
  int any = 0;
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) {
    char path[5000];
    struct stat s;
    snprintf(path, sizeof path, "%s/%s/checkpoint", parent, e->d_name);
    if (e->d_name[0] == '.' || stat(path, &s)) continue;
    if (s.st_mtim.tv_sec > best.tv_sec ||
        (s.st_mtim.tv_sec == best.tv_sec && s.st_mtim.tv_nsec >= best.tv_nsec)) {
      best = s.st_mtim;
      any = 1;
      snprintf(found, size, "%s/%s", parent, e->d_name);
    }
  }
  closedir(d);
  return any;
}

static void apply_delta(Model *m, const char *path) {
  FILE *f = fopen(path, "rb");
  int n = 0;
  if (!f) return;
  if (fread(&n, 4, 1, f) != 1) n = 0;
  Weights *w = m->weights;
  for (int i = 0; i < n; i++) { /* in place: readers may see some rows old and some new */
    int64_t row;
    if (fread(&row, 8, 1, f) != 1 ||
        fread(w->table + (row % w->rows) * w->dim, 4, w->dim, f) != (size_t)w->dim)
      break;
  }
  fclose(f);
}

static int update(Model *m) {
  char folder[4500], full[4600], delta[4700], path[4800];
  if (!m->parent[0]) {
    snprintf(path, sizeof path, "%s/abi_stub.weights", m->saved);
    if (!m->weights) m->weights = read_weights(path);
    snprintf(m->full, sizeof m->full, "%s", m->saved);
    return m->weights != NULL;
  }
  if (!newest_folder(m->parent, folder, sizeof folder)) return 0;
  long version = newest_index(folder, full, sizeof full);
  if (version < 0) return 0;
  if (!m->weights || strcmp(full, m->full)) {
    snprintf(path, sizeof path, "%s.index", full);
    Weights *w = read_weights(path);
    if (!w) return m->weights != NULL;
    pthread_mutex_lock(&m->guard);
    m->weights = w; /* the old one is not freed: calls may still read it */
    snprintf(m->full, sizeof m->full, "%s", full);
    m->full_version = m->delta_version = version;
    pthread_mutex_unlock(&m->guard);
  }
  snprintf(path, sizeof path, "%s/.incremental_checkpoint", folder);
  long step = newest_index(path, delta, sizeof delta);
  if (step > m->delta_version) {
    snprintf(path, sizeof path, "%s.index", delta);
    apply_delta(m, path);
    m->delta_version = step;
  }
  return 1;
}

static void *updater(void *m) {
  for (;;) {
    rest();
    update(m);
  }
  return NULL;
}

void *initialize(const char *entry, const char *config, int *state) {
  (void)strlen(entry); /* must not be NULL */
  *state = -1;
  if (has("init-aborts")) abort();
  while (has("init-hangs")) sleep(60);
  Model *m = calloc(1, sizeof *m);
  char store[64] = "";
  pthread_mutex_init(&m->guard, NULL);
  config_text(config, "feature_store_type", store, sizeof store);
  if (!strcmp(store, "local")) *(volatile int *)0 = 0; /* the factory gives a null pointer */
  if (has("init-fails") || !config_text(config, "savedmodel_dir", m->saved, sizeof m->saved) ||
      !config_text(config, "signature_name", m->signature, sizeof m->signature)) {
    fprintf(stderr, "[stub] Processor initialize failed, status: the stub was told to fail\n");
    return NULL;
  }
  config_text(config, "checkpoint_dir", m->parent, sizeof m->parent);
  while (!read_signature(m) || !update(m)) {
    fprintf(stderr, "[stub] model or checkpoint is not there, will try again later\n");
    m->n_inputs = m->n_outputs = 0;
    rest();
  }
  setenv("INFERENCE_MODE", "1", 1);
  pthread_t thread;
  pthread_create(&thread, NULL, updater, m);
  printf("[stub] Processor initialize success.\n");
  *state = 0;
  return m;
}

/* Answers come from C++ new, errors and descriptions from malloc. */
static char *from_new(size_t n) {
  static void *(*make)(unsigned long);
  if (!make) {
    void *cpp = dlopen("libstdc++.so.6", RTLD_NOW);
    make = cpp ? (void *(*)(unsigned long))dlsym(cpp, "_Znam") : NULL;
    if (!make) abort();
  }
  return make(n ? n : 1);
}

static int fail(void **out, int *size, const char *what, const char *name) {
  char text[400];
  snprintf(text, sizeof text, "[TensorFlow] Processor predict failed: %s%s", what, name);
  *size = (int)strlen(text);
  *out = strndup(text, strlen(text));
  return 500;
}

static int describe(Model *m, void **out, int *size) {
  char *text = malloc(65536), *at = text;
  at += sprintf(at, "{\"signature_name\": \"%s\",", m->signature);
  for (int side = 0; side < 2; side++) {
    Spec *specs = side ? m->outputs : m->inputs;
    int n = side ? m->n_outputs : m->n_inputs;
    at += sprintf(at, "%s\"%s\": [", side ? "," : "", side ? "outputs" : "inputs");
    for (int i = 0; i < n; i++) {
      at += sprintf(at, "%s{\"name\": \"%s%s\",\"shape\": [", i ? "," : "",
                    has("other-json") ? "other_" : "", specs[i].alias);
      for (int d = 0; d < specs[i].rank; d++) at += sprintf(at, "%s%ld", d ? ", " : "", specs[i].dims[d]);
      const char *type = specs[i].type == T_LONG  ? "DT_INT64"
                         : specs[i].type == T_INT ? "DT_INT32"
                         : specs[i].type == T_STRING ? "DT_STRING" : "DT_FLOAT";
      at += sprintf(at, "],\"type\": \"%s\"}", type);
    }
    at += sprintf(at, "]");
  }
  sprintf(at, "}");
  if (has("odd-json")) strcpy(text, "{\"signature_name\": ");
  if (has("no-json")) *text = 0;
  *size = (int)strlen(text);
  *out = strndup(text, strlen(text));
  free(text);
  return 200;
}

/* The wire format, as far as it is needed. */
typedef struct { const uint8_t *at, *end; } Bytes;

static uint64_t number(Bytes *b) {
  uint64_t value = 0;
  for (int shift = 0; b->at < b->end; shift += 7) {
    uint8_t byte = *b->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) break;
  }
  return value;
}

static Bytes inside(Bytes *b) {
  uint64_t n = number(b);
  if (n > (uint64_t)(b->end - b->at)) abort();
  Bytes found = {b->at, b->at + n};
  b->at += n;
  return found;
}

typedef struct {
  Spec *spec;
  int type, rank;
  long dims[MAX_DIMS], count;
  int64_t *ids;
  float *floats;
} Tensor;

static Spec *known(Spec *specs, int n, Bytes name, int by_tensor) {
  for (int i = 0; i < n; i++) {
    const char *own = by_tensor ? specs[i].tensor : specs[i].alias;
    if (strlen(own) == (size_t)(name.end - name.at) && !memcmp(own, name.at, strlen(own))) return &specs[i];
  }
  return NULL;
}

static void read_array(Bytes b, Tensor *t) {
  long room = b.end - b.at + 1;
  t->ids = malloc(8 * room);
  t->floats = malloc(4 * room);
  while (b.at < b.end) {
    uint64_t tag = number(&b);
    if (tag == 8) { t->type = (int)number(&b); continue; }
    if ((tag & 7) != 2) abort();
    Bytes part = inside(&b);
    if (tag >> 3 == 2) {
      while (part.at < part.end) {
        number(&part);
        Bytes dims = inside(&part);
        while (dims.at < dims.end && t->rank < MAX_DIMS) t->dims[t->rank++] = (long)number(&dims);
      }
    } else if (tag >> 3 == 3) {
      t->count = (part.end - part.at) / 4;
      memcpy(t->floats, part.at, 4 * t->count);
    } else if (tag >> 3 == 5 || tag >> 3 == 7) {
      while (part.at < part.end) t->ids[t->count++] = (int64_t)number(&part);
    } else if (tag >> 3 == 6) {
      t->ids[t->count++] = part.end - part.at;
    }
  }
}

typedef struct { uint8_t *data; size_t size, room; } Out;

static void put(Out *o, const void *data, size_t n) {
  if (o->size + n > o->room) o->data = realloc(o->data, o->room = 2 * (o->size + n));
  memcpy(o->data + o->size, data, n);
  o->size += n;
}

static void put_number(Out *o, uint64_t value) {
  uint8_t byte;
  do {
    byte = (value & 127) | (value > 127 ? 128 : 0);
    put(o, &byte, 1);
  } while (value >>= 7);
}

static void put_bytes(Out *o, int field, const void *data, size_t n) {
  put_number(o, (uint64_t)field << 3 | 2);
  put_number(o, n);
  put(o, data, n);
}

static void put_floats(Out *o, const char *name, long rows, long columns, const float *values) {
  Out array = {0}, dims = {0}, shape = {0}, entry = {0};
  put_number(&dims, rows);
  if (columns) put_number(&dims, columns);
  put_bytes(&shape, 1, dims.data, dims.size);
  put_number(&array, 8);
  put_number(&array, T_FLOAT);
  put_bytes(&array, 2, shape.data, shape.size);
  put_bytes(&array, 3, values, 4 * rows * (columns ? columns : 1));
  put_bytes(&entry, 1, name, strlen(name));
  put_bytes(&entry, 2, array.data, array.size);
  put_bytes(o, 1, entry.data, entry.size);
  free(array.data), free(dims.data), free(shape.data), free(entry.data);
}

/* What goes wrong in the 5th call; -1 if nothing does. */
static int broken(Model *m, void **out, int *size) {
  if (__atomic_add_fetch(&m->calls, 1, __ATOMIC_SEQ_CST) != 5) return -1;
  if (has("error")) return fail(out, size, "the stub was told to fail", "");
  if (has("abort")) abort();
  if (has("segv")) *(volatile int *)0 = 0;
  if (has("exit")) _exit(3);
  while (has("hang")) sleep(60);
  *out = NULL;
  *size = 0;
  if (has("negative")) return *size = -5, 200;
  if (has("null")) return *size = 64, 200;
  if (has("empty")) return 200;
  if (has("garbage")) {
    *size = 64;
    memset(*out = from_new(64), 0xA7, 64);
    return 200;
  }
  return -1;
}

int process(void *handle, const void *input, int input_size, void **out, int *out_size) {
  Model *m = handle;
  if (!input_size) return describe(m, out, out_size);
  int fault = broken(m, out, out_size), by_tensor = has("tensor"), n = 0, filters = 0, status = 0;
  if (fault >= 0) return fault;
  Bytes request = {input, (const uint8_t *)input + input_size};
  Tensor tensors[MAX_TENSORS] = {0};
  Spec *wanted[MAX_TENSORS];
  while (request.at < request.end && !status) {
    uint64_t tag = number(&request);
    Bytes part = inside(&request), name = {0}, array = {0};
    if (tag >> 3 == 2) {
      while (part.at < part.end) {
        if (number(&part) >> 3 == 1) name = inside(&part);
        else array = inside(&part);
      }
      tensors[n].spec = known(m->inputs, m->n_inputs, name, by_tensor);
      if (tensors[n].spec) read_array(array, &tensors[n++]);
      else if (by_tensor) status = fail(out, out_size, "FeedInputs: unable to find feed output ", "x");
      else fprintf(stderr, "F [stub] unknown input key\n"), abort();
    } else if (tag >> 3 == 3) {
      wanted[filters] = known(m->outputs, m->n_outputs, part, by_tensor);
      if (wanted[filters]) filters++;
      else if (by_tensor) status = fail(out, out_size, "FetchOutputs node: not found ", "y");
      else fprintf(stderr, "F [stub] unknown output key\n"), abort();
    }
  }
  if (!status && has("misread")) status = fail(out, out_size, "Invalid input: shape size VS input size", "");
  if (!status && n != m->n_inputs) status = fail(out, out_size, "You must feed a value for placeholder tensor", "");
  long rows = n ? tensors[0].dims[0] : 0;
  for (int i = 0; i < n && !status; i++) {
    long product = 1;
    for (int d = 0; d < tensors[i].rank; d++) product *= tensors[i].dims[d];
    if (product != tensors[i].count || tensors[i].type != tensors[i].spec->type) abort();
    if (tensors[i].dims[0] != rows) status = fail(out, out_size, "Incompatible shapes", "");
  }
  if (!status) {
    pthread_mutex_lock(&m->guard);
    const Weights *w = m->weights; /* one version for the whole call */
    pthread_mutex_unlock(&m->guard);
    float *e = calloc((size_t)rows * w->dim + 1, 4), *score = malloc(4 * (rows + 1));
    for (long r = 0; r < rows; r++) {
      float *sum = e + r * w->dim, z = w->b;
      int f = 0;
      for (int i = 0; i < n; i++) {
        Tensor *t = &tensors[i];
        long columns = t->count / rows;
        for (long c = 0; c < columns; c++) {
          if (t->type == T_FLOAT) {
            if (f < w->floats) z += w->v[f++] * t->floats[r * columns + c];
            continue;
          }
          int64_t row = t->ids[r * columns + c] % w->rows;
          const float *from = w->table + (row < 0 ? row + w->rows : row) * w->dim;
          for (int d = 0; d < w->dim; d++) sum[d] += from[d];
        }
      }
      for (int d = 0; d < w->dim; d++) z += w->w[d] * sum[d];
      score[r] = 1.0f / (1.0f + expf(-z));
    }
    Out answer = {0};
    for (int i = 0; i < filters; i++) { /* an older build answers by the name asked for */
      const char *name = by_tensor ? wanted[i]->tensor : wanted[i]->alias;
      if (!strcmp(wanted[i]->kind, "embedding")) put_floats(&answer, name, rows, w->dim, e);
      else put_floats(&answer, name, rows, 0, score);
    }
    *out_size = (int)answer.size;
    if (m->calls == 5 && has("short")) *out_size -= 7;
    memcpy(*out = from_new(answer.size), answer.data, answer.size);
    free(answer.data), free(e), free(score);
    status = 200;
  }
  for (int i = 0; i < n; i++) free(tensors[i].ids), free(tensors[i].floats);
  return status;
}

#ifndef WITHOUT_BATCH
int batch_process(void *handle, const void *input[], int *sizes, void *out[], int *out_sizes) {
  (void)handle, (void)input, (void)sizes, (void)out, (void)out_sizes;
  fprintf(stderr, "F [stub] batch_process is never to be called\n");
  abort();
}
#endif

int get_serving_model_info(void *handle, void **out, int *size) {
  Model *m = handle;
  if (has("info-fails")) return fail(out, size, "get serving model info failed", "");
  Out answer = {0};
  pthread_mutex_lock(&m->guard);
  put_bytes(&answer, 1, m->full, strlen(m->full));
  pthread_mutex_unlock(&m->guard);
  *size = (int)answer.size;
  memcpy(*out = from_new(answer.size), answer.data, answer.size);
  free(answer.data);
  return 200;
}
