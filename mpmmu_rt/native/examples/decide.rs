// decide.c in Rust, with the part of mpmmu.h that it needs: rustc -O decide.rs -L FOLDER -l mpmmu
use std::ffi::{CStr, CString};
use std::os::raw::c_char;
use std::{env, fs, process, ptr};

#[repr(C)]
struct Preprocessing {
    side: u32,
    pad: u32,
    physical: u32,
}

#[repr(C)]
struct Info {
    size: usize,
    name: *const c_char,
    digest: *const c_char,
    target: *const c_char,
    head_target: *const c_char,
    engine: *const c_char,
    trained: u32,
    threads: u32,
    threshold: f64,
    preprocessing: Preprocessing,
    embedding_width: usize,
    learners: usize,
    warning: *const c_char,
}

#[repr(C)]
struct Outputs {
    size: usize,
    probability: *mut f32,
    malignant: *mut u8,
    base_probability: *mut f32,
    embedding: *mut f32,
}

enum Model {}

extern "C" {
    fn mpmmu_open(folder: *const c_char, options: *const u8, model: *mut *mut Model) -> i32;
    fn mpmmu_self_test(model: *mut Model, result: *mut u8) -> i32;
    fn mpmmu_get_info(model: *const Model, info: *mut Info) -> i32;
    fn mpmmu_preprocess(
        how: *const Preprocessing, grey: *const u8, height: usize, width: usize, pixel_aspect: f64, pixels: *mut u8,
    ) -> i32;
    fn mpmmu_predict(
        model: *mut Model, mammography: *const u8, ultrasound: *const u8, cases: usize, outputs: *const Outputs,
    ) -> i32;
    fn mpmmu_image_warning(
        model: *const Model, mammography: *const u8, ultrasound: *const u8, warning: *mut *const c_char,
    ) -> i32;
    fn mpmmu_last_error() -> *const c_char;
    fn mpmmu_last_hint() -> *const c_char;
    fn mpmmu_close(model: *mut Model);
}

fn check(status: i32) {
    if status != 0 {
        let said = unsafe { [CStr::from_ptr(mpmmu_last_error()), CStr::from_ptr(mpmmu_last_hint())] };
        eprintln!("error: {}\nhint: {}", said[0].to_string_lossy(), said[1].to_string_lossy());
        process::exit(if status == 3 || status == 8 { 3 } else { 1 });
    }
}

/// Height, width and grey values of a binary PGM of 8 bits.
fn read_grey(path: &str) -> Option<(usize, usize, Vec<u8>)> {
    let data = fs::read(path).ok()?;
    let mut at = 0;
    let mut words = Vec::new();
    while words.len() < 4 {
        let end = at + data[at..].iter().position(u8::is_ascii_whitespace)?;
        words.push(String::from_utf8(data[at..end].to_vec()).ok()?);
        at = end + 1;
    }
    let (width, height) = (words[1].parse::<usize>().ok()?, words[2].parse::<usize>().ok()?);
    let grey = data.get(at..at.checked_add(width.checked_mul(height)?)?)?.to_vec();
    (words[0] == "P5" && words[3] == "255" && !grey.is_empty()).then_some((height, width, grey))
}

fn main() {
    let given: Vec<String> = env::args().collect();
    if given.len() != 4 {
        eprintln!("usage: decide BUNDLE MAMMOGRAM.pgm ULTRASOUND.pgm");
        process::exit(2);
    }
    let folder = CString::new(given[1].as_str()).expect("a path holds no zero byte");
    let mut model: *mut Model = ptr::null_mut();
    let mut info: Info = unsafe { std::mem::zeroed() };
    info.size = std::mem::size_of::<Info>();
    unsafe {
        check(mpmmu_open(folder.as_ptr(), ptr::null(), &mut model));
        check(mpmmu_self_test(model, ptr::null_mut()));
        check(mpmmu_get_info(model, &mut info));
    }
    let side = info.preprocessing.side as usize;
    let pixels: Vec<Vec<u8>> = given[2..]
        .iter()
        .map(|path| {
            let (height, width, grey) = read_grey(path).unwrap_or_else(|| {
                eprintln!("error: {path} is no 8-bit binary PGM, expected one\nhint: convert {path}");
                process::exit(1);
            });
            let mut out = vec![0; side * side];
            check(unsafe {
                mpmmu_preprocess(&info.preprocessing, grey.as_ptr(), height, width, 1.0, out.as_mut_ptr())
            });
            out
        })
        .collect();
    let (mut probability, mut malignant) = (0f32, 0u8);
    let outputs = Outputs {
        size: std::mem::size_of::<Outputs>(),
        probability: &mut probability,
        malignant: &mut malignant,
        base_probability: ptr::null_mut(),
        embedding: ptr::null_mut(),
    };
    check(unsafe { mpmmu_predict(model, pixels[0].as_ptr(), pixels[1].as_ptr(), 1, &outputs) });
    println!("{} {}", probability, if malignant == 1 { "malignant" } else { "benign" });
    let mut against: *const c_char = ptr::null();
    check(unsafe { mpmmu_image_warning(model, pixels[0].as_ptr(), pixels[1].as_ptr(), &mut against) });
    for said in [info.warning, against] {
        let warning = unsafe { CStr::from_ptr(said) }.to_string_lossy();
        if !warning.is_empty() {
            eprintln!("warning: {warning}");
        }
    }
    unsafe { mpmmu_close(model) };
}
